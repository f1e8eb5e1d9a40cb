"""Files of what can be made again: one for each key, in a folder that may be removed at any time.

A key names everything that shapes the content. Versions of PyTorch and kinds of devices round differently, so both belong to every key.
"""

from pathlib import Path
from typing import Any, NamedTuple

from temporallens.errors import TemporalLensError
from temporallens.files import fingerprint, read_json, read_tensors, write_json, write_tensors


class Cache(NamedTuple):
    """One kind of content."""

    folder: Path
    format: str  # raised when the same key stands for other content

    def tensors(self, key: dict[str, Any]) -> dict[str, Any] | None:
        """The tensors under `key`; None where there are none, or damaged ones."""
        path = self.path(key, "safetensors")
        if not path.is_file():
            return None
        try:
            tensors, stored = read_tensors(path, "content that can be made again")
        except TemporalLensError:
            return None
        return tensors if stored == self._whole(key) else None

    def put_tensors(self, key: dict[str, Any], tensors: dict[str, Any]) -> None:
        write_tensors(self.path(key, "safetensors"), tensors, self._whole(key))

    def json(self, key: dict[str, Any]) -> Any:
        """The JSON under `key`; None where there is none, or it is damaged."""
        path = self.path(key, "json")
        if not path.is_file():
            return None
        try:
            content = read_json(path, "content that can be made again")
        except TemporalLensError:
            return None
        return content["content"] if content.get("key") == self._whole(key) else None

    def put_json(self, key: dict[str, Any], content: Any) -> None:
        write_json(self.path(key, "json"), {"key": self._whole(key), "content": content})

    def path(self, key: dict[str, Any], ending: str) -> Path:
        return self.folder / f"{fingerprint(self._whole(key))[:32]}.{ending}"

    def _whole(self, key: dict[str, Any]) -> dict[str, Any]:
        return {"format": self.format, **machine(), **key}


def machine() -> dict[str, str]:
    """What the last bits of a result depend on beside its inputs."""
    import torch

    from temporallens.precision import default_device

    return {"torch": torch.__version__, "device": default_device()}
