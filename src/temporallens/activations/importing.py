"""Your own activations: `[N, S, D]` arrays of anything sequential become a store like any harvested one."""

import hashlib
import math
import tokenize
import zlib
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo, is_zipfile

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from temporallens.activations.clocks import CLOCKS
from temporallens.activations.moments import FIRST, NORM, beyond_norm
from temporallens.activations.store import ActivationStore, Rows, StoreDescription, StoreWriter, refuse_occupied
from temporallens.errors import CannotWriteError, TemporalLensError, did_you_mean
from temporallens.files import abandon, locked, user_path

CHUNK_BYTES = 32 << 20
NORM_MULTIPLE = 10.0
"""A row is a sink when its norm exceeds this multiple of the median norm (measured on SmolLM2: sinks have 180 times it)."""

LARGEST_UNPACKED = 4 << 30
"""Bytes; an .npz is unpacked into memory, and a small one can hold a hundred times the memory that there is."""
DEFLATE_RATIO = 1100
"""DEFLATE makes nothing smaller than about one 1,030th."""


def read_array(path: Path | str, name: str | None = None) -> np.ndarray:
    """Read an array from .npy (mapped, not loaded), .npz or .safetensors; `name` is needed where a file holds several."""
    path = user_path(path)
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise TemporalLensError(f"{path} {found}: it should be an array in .npy, .npz or .safetensors")
    if name is not None and path.suffix == ".npy":
        raise TemporalLensError(f"{path} holds one array without a name: leave out the name '{name}'")
    if path.suffix == ".npz" and not is_zipfile(path):
        raise TemporalLensError(f"{path} is not readable as .npz: it is truncated, or of another format")
    try:
        if path.suffix == ".npy":
            return _map_npy(path)
        if path.suffix == ".npz":
            return _read_npz(path, name)
        if path.suffix == ".safetensors":
            return _read_safetensors(path, name)
    except UNREADABLE as error:
        raise TemporalLensError(f"{path} is not readable as {path.suffix}: {error}") from error
    raise TemporalLensError(f"{path} has the ending '{path.suffix}': activations are read from .npy, .npz or .safetensors")


UNREADABLE = (
    *(ValueError, TypeError, EOFError, OSError, KeyError, OverflowError, RecursionError, MemoryError, SyntaxError),
    *(BadZipFile, zlib.error, tokenize.TokenError, NotImplementedError, RuntimeError),  # RuntimeError: zipfile's word for what is encrypted
)
"""What numpy and zipfile raise for files that are not what they seem."""


def _map_npy(path: Path) -> np.ndarray:
    """The array of an .npy, mapped."""
    with path.open("rb") as file:
        _check_header(file, path.stat().st_size)
    return np.lib.format.open_memmap(path, mode="r")


def _read_npz(path: Path, name: str | None) -> np.ndarray:
    """One array of an .npz; its sizes are checked before memory is taken for it."""
    with ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        member = members[_only(path, list(members), name)]
        _refuse_bomb(member, path)
        with archive.open(member) as file:
            _check_header(file, member.file_size)
        with archive.open(member) as file:
            return np.asarray(np.lib.format.read_array(file, allow_pickle=False))


def _check_header(file: Any, size: int) -> None:
    """Raise ValueError where the header of an .npy promises more than its `size` bytes hold."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > size:
        raise ValueError(f"its header promises an array of shape {shape}, which is more than it holds")


def _refuse_bomb(member: ZipInfo, path: Path) -> None:
    """Raise for a part of an archive that would unpack to more than it can hold, or than memory should."""
    if member.compress_type not in {ZIP_STORED, ZIP_DEFLATED}:
        raise ValueError("it is packed in a way that numpy does not use")
    if member.file_size > DEFLATE_RATIO * min(member.compress_size, path.stat().st_size):
        raise ValueError(f"it promises {member.file_size:,} bytes, which {member.compress_size:,} packed ones cannot hold")
    if member.file_size > LARGEST_UNPACKED:
        raise TemporalLensError(
            f"{path} unpacks to {member.file_size / 1e9:.1f} GB in memory; save the array as .npy, which is read piece by piece"
        )


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
    Arrays that cannot be stored leave nothing behind; an interrupted call goes on when it is repeated with the same arrays, and a
    second process that would write to `out` meanwhile is refused.
    exclude_first leaves index 0 out of training and headline metrics, as language models want it. Raises TemporalLensError
    for another rank, mismatched shapes, NaN or infinity.
    """
    sequences, length, width = _shape(x)
    mask = np.ones((sequences, length), bool) if mask is None else _companion(mask, "mask", (sequences, length), "biuf")
    tokens = np.full((sequences, length), -1) if tokens is None else _companion(tokens, "tokens", (sequences, length), "iu")
    documents = np.arange(sequences) if documents is None else _companion(documents, "documents", (sequences,), "iu")
    chunk = max(1, CHUNK_BYTES // (length * width * 4))
    parts = [slice(first, min(first + chunk, sequences)) for first in range(0, sequences, chunk)]
    description = StoreDescription(
        source={"kind": "arrays", "file": source, "sha256": _content((x, mask, tokens, documents), parts)},
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
    out = user_path(out)
    refuse_occupied(out)
    with locked(out):
        writer = StoreWriter(out, description)
        try:
            for number, part in enumerate(parts):
                if number >= writer.appends_done:
                    writer.append(_rows(x[part], mask[part], tokens[part], documents[part], part.start, exclude_first, norm_multiple))
            return writer.finish()
        except CannotWriteError:
            raise
        except TemporalLensError:
            writer.discard()
            abandon(out)
            raise


def _content(arrays: tuple[Any, ...], parts: list[slice]) -> str:
    """SHA-256 of all that is stored, so that an interrupted call is not continued with other arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        for part in parts:
            values = array[part].detach().cpu().contiguous().view(torch.uint8).numpy() if isinstance(array, Tensor) else array[part]
            digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


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


def _companion(value: Any, name: str, shape: tuple[int, ...], kinds: str) -> np.ndarray:
    """`value` as an array of that shape whose type is one of numpy's `kinds`."""
    array = np.asarray(value)
    if array.shape != shape:
        raise TemporalLensError(f"{name} has shape {array.shape}, the activations need {shape}")
    if array.dtype.kind not in kinds:
        wanted = "integers" if "f" not in kinds else "true and false, or numbers"
        raise TemporalLensError(f"{name} should hold {wanted}; this array holds {array.dtype}")
    return array


def _rows(
    x: Any, mask: np.ndarray, tokens: np.ndarray, documents: np.ndarray, first: int, exclude_first: bool, multiple: float | None
) -> Rows:
    values = (x.detach().cpu() if isinstance(x, Tensor) else torch.from_numpy(np.array(x))).float()
    count, length, _ = values.shape
    present = torch.from_numpy(np.array(mask > 0))
    if not bool(present.any(1).all()):
        empty = first + int((~present.any(1)).nonzero()[0])
        raise TemporalLensError(f"sequence {empty} is masked out entirely; leave it out of the arrays")
    index = (present.long().cumsum(1) - 1)[present]
    sequence: Int[Tensor, " N"] = torch.arange(first, first + count)[:, None].expand(count, length)[present]
    excluded = torch.zeros(len(index), dtype=torch.uint8)
    if exclude_first:
        excluded |= (index == 0).to(torch.uint8) * FIRST
    if multiple is not None:
        norms = torch.linalg.vector_norm(values[present], dim=1)
        excluded |= beyond_norm(norms, index > 0, multiple).to(torch.uint8) * NORM
    return Rows(
        x=values[present],
        position=index,
        index=index,
        document_position=index,
        sequence=sequence,
        document=torch.from_numpy(documents.astype(np.int64))[:, None].expand(count, length)[present],
        token=torch.from_numpy(tokens.astype(np.int64))[present],
        excluded=excluded,
    )
