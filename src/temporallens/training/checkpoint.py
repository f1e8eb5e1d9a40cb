"""Checkpoints: everything that a training run is, in one safetensors file, so that going on equals never having stopped."""

from pathlib import Path
from typing import Any

from torch import Tensor

from temporallens.files import canonical_json, fingerprint, read_tensors, write_tensors

FORMAT = "temporallens.checkpoint/1"


def checkpoint_file(folder: Path, settings: Any) -> Path:
    """Where a run with these settings keeps its checkpoint; other settings have another file, and are never continued."""
    return folder / f"checkpoint-{fingerprint(settings)[:16]}.safetensors"


def save_checkpoint(path: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """`state` is small JSON (step, cursor, seconds); tensors are named `run/part/tensor`. Both carry a checksum."""
    write_tensors(path, tensors, {"format": FORMAT, "state": canonical_json(state)})


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Tensors and state of a checkpoint. Raises TemporalLensError when the file is damaged."""
    import json

    tensors, metadata = read_tensors(path, "a checkpoint (remove it to start the training again)")
    return tensors, json.loads(metadata["state"])
