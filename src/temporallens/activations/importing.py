"""Your own activations: `[N, S, D]` arrays of anything sequential become a store like any harvested one."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from temporallens.activations.clocks import CLOCKS
from temporallens.activations.moments import FIRST, NORM
from temporallens.activations.store import ActivationStore, Rows, StoreDescription, StoreWriter
from temporallens.errors import TemporalLensError, did_you_mean

CHUNK_BYTES = 32 << 20
NORM_MULTIPLE = 10.0
"""A row is a sink when its norm exceeds this multiple of the median norm (measured on SmolLM2: sinks have 180 times it)."""


def norm_rule(norms: Float[Tensor, " N"], eligible: Tensor, multiple: float | None) -> Tensor:
    """Rows whose norm exceeds `multiple` times the median norm of the eligible ones; bool `[N]`, all False for None."""
    if multiple is None or not bool(eligible.any()):
        return torch.zeros_like(norms, dtype=torch.bool)
    return norms > multiple * norms[eligible].median()


def read_array(path: Path | str, name: str | None = None) -> np.ndarray:
    """Read an array from .npy (mapped, not loaded), .npz or .safetensors; `name` is needed where a file holds several."""
    path = Path(path)
    if not path.is_file():
        raise TemporalLensError(f"{path} does not exist: it should be an array in .npy, .npz or .safetensors")
    try:
        if path.suffix == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False)
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return arrays[_only(path, list(arrays.keys()), name)]
        if path.suffix == ".safetensors":
            return _read_safetensors(path, name)
    except (ValueError, EOFError, OSError, KeyError) as error:
        raise TemporalLensError(f"{path} is not readable as {path.suffix}: {error}") from error
    raise TemporalLensError(f"{path} has the ending '{path.suffix}': activations are read from .npy, .npz or .safetensors")


def _read_safetensors(path: Path, name: str | None) -> np.ndarray:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensor = file.get_tensor(_only(path, list(file.keys()), name))
    except SafetensorError as error:
        raise TemporalLensError(f"{path} is not readable as .safetensors: {error}") from error
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _only(path: Path, names: list[str], wanted: str | None) -> str:
    if wanted is not None and wanted not in names:
        raise TemporalLensError(f"{path} has no array '{wanted}'{did_you_mean(wanted, names)}")
    if wanted is None and len(names) != 1:
        raise TemporalLensError(f"{path} holds {len(names)} arrays ({', '.join(sorted(names))}); name the one to read")
    return wanted or names[0]


def store_arrays(
    x: Any,
    out: Path | str,
    *,
    mask: Any = None,
    tokens: Any = None,
    documents: Any = None,
    exclude_first: bool = True,
    norm_multiple: float | None = NORM_MULTIPLE,
    source: str = "arrays",
) -> ActivationStore:
    """Write `[N, S, D]` activations (an array or tensor of float16, bfloat16, float32 or float64) as a float32 store.

    mask `[N, S]` is true where there is an activation; tokens `[N, S]` are ids; documents `[N]` say which sequences belong
    together (by default each is a document of its own) and so must not be divided between training and held-out data.
    exclude_first leaves index 0 out of training and headline metrics, as language models want it. Raises TemporalLensError
    for another rank, mismatched shapes, NaN or infinity.
    """
    sequences, length, width = _shape(x)
    mask = _companion(mask, "mask", (sequences, length), np.ones)
    tokens = _companion(tokens, "tokens", (sequences, length), lambda shape: np.full(shape, -1))
    documents = np.arange(sequences) if documents is None else _companion(documents, "documents", (sequences,), np.zeros)
    description = StoreDescription(
        source={"kind": "arrays", "file": source},
        policies={
            "rows": "arrays",
            "clock": "index",
            "context_length": length,
            "position_zero": "excluded" if exclude_first else "kept",
            "norm_multiple": norm_multiple,
        },
        width=width,
        dtype="float32",
        positions=CLOCKS["index"].size(length),
    )
    writer = StoreWriter(out, description)
    chunk = max(1, CHUNK_BYTES // (length * width * 4))
    for number, first in enumerate(range(0, sequences, chunk)):
        if number >= writer.appends_done:
            part = slice(first, min(first + chunk, sequences))
            writer.append(_rows(x[part], mask[part], tokens[part], documents[part], first, exclude_first, norm_multiple))
    return writer.finish()


def _shape(x: Any) -> tuple[int, int, int]:
    if getattr(x, "ndim", None) != 3:
        raise TemporalLensError(
            f"activations must have shape [sequences, positions, width]; this array has shape {tuple(getattr(x, 'shape', ()))}"
        )
    kind = str(x.dtype).removeprefix("torch.")
    if kind not in {"float16", "bfloat16", "float32", "float64"}:
        raise TemporalLensError(f"activations must be floating point; this array holds {kind}")
    if 0 in x.shape:
        raise TemporalLensError(f"the activations are empty: their shape is {tuple(x.shape)}")
    sequences, length, width = (int(size) for size in x.shape)
    return sequences, length, width


def _companion(value: Any, name: str, shape: tuple[int, ...], default: Any) -> np.ndarray:
    array = default(shape) if value is None else np.asarray(value)
    if array.shape != shape:
        raise TemporalLensError(f"{name} has shape {array.shape}, the activations need {shape}")
    return array


def _rows(
    x: Any, mask: np.ndarray, tokens: np.ndarray, documents: np.ndarray, first: int, exclude_first: bool, multiple: float | None
) -> Rows:
    values = (x if isinstance(x, Tensor) else torch.from_numpy(np.array(x))).float()
    count, length, _ = values.shape
    present = torch.from_numpy(np.array(mask)) > 0
    if not bool(present.any(1).all()):
        empty = first + int((~present.any(1)).nonzero()[0])
        raise TemporalLensError(f"sequence {empty} is masked out entirely; leave it out of the arrays")
    index = (present.long().cumsum(1) - 1)[present]
    sequence: Int[Tensor, " N"] = torch.arange(first, first + count)[:, None].expand(count, length)[present]
    norms = torch.linalg.vector_norm(values[present], dim=1)
    excluded = NORM * norm_rule(norms, index > 0, multiple).to(torch.uint8)
    if exclude_first:
        excluded = excluded | (FIRST * (index == 0)).to(torch.uint8)
    return Rows(
        x=values[present],
        position=index,
        index=index,
        document_position=index,
        sequence=sequence,
        document=torch.from_numpy(np.array(documents))[:, None].expand(count, length)[present],
        token=torch.from_numpy(np.array(tokens))[present],
        excluded=excluded,
    )
