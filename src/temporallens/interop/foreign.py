"""Tensors of strangers' files: safetensors, NumPy's .npz and PyTorch's .pt, looked at before memory is taken for any of them, then read
piece by piece.

Nothing is unpickled but what PyTorch's `weights_only` allows. A file may not promise more than it holds. No more than one piece
of a file is in memory at a time.
"""

import json
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import ZIP_STORED, ZipFile, ZipInfo, is_zipfile

import numpy as np
import torch
from torch import Tensor

from temporallens.activations.importing import UNREADABLE, is_dense, read_npy_header, refuse_bomb
from temporallens.errors import TemporalLensError, first_line

CHUNK_BYTES = 8 << 20
"""Of a file that are read at a time."""
LARGEST_HEADER = 100 << 20
"""Bytes; safetensors' own bound."""
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""safetensors' names; those of 8-bit floats and others are refused, as weights of so few bits come with scales of their own."""


@dataclass(frozen=True)
class Entry:
    """One tensor of a file."""

    path: Path
    name: str
    shape: tuple[int, ...]
    source: Callable[[], Iterator[Tensor]]  # see `pieces`
    turned: bool = False

    def pieces(self) -> Iterator[Tensor]:
        """All of it, in order: rows, of the transpose where it is `turned`; a scalar as it is."""
        try:
            yield from self.source()
        except UNREADABLE as error:
            raise TemporalLensError(f"{self.path} cannot be read: its part '{self.name}' is damaged ({first_line(error)})") from error

    @property
    def T(self) -> "Entry":
        """The transpose of a matrix."""
        return replace(self, shape=self.shape[::-1], turned=not self.turned)


Entries = dict[str, Entry]


def open_tensors(path: Path) -> Entries:
    """The tensors of a file by their names. Raises TemporalLensError for a file that is none, or damaged, or would run code."""
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise TemporalLensError(f"{path} {found}: it should hold the tensors of a dictionary")
    opener = OPENERS.get(path.suffix)
    if opener is None:
        raise TemporalLensError(f"{path} has the ending '{path.suffix}': dictionaries are read from {', '.join(OPENERS)}")
    try:
        return opener(path)
    except TemporalLensError:
        raise
    except Exception as error:  # what a damaged header or archive makes its parser raise has no end
        raise TemporalLensError(f"{path} cannot be read as the weights of a dictionary: {first_line(error)}") from error


def _safetensors(path: Path) -> Entries:
    from safetensors import safe_open

    with safe_open(path, framework="pt"):  # checks that the parts lie side by side and fill the file
        pass
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > LARGEST_HEADER:
            raise ValueError(f"its header has {size:,} bytes")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    return {name: _part(path, name, 8 + size, about) for name, about in header.items()}


def _part(path: Path, name: str, begin: int, about: Any) -> Entry:
    dtype, shape, (first, last) = about["dtype"], tuple(about["shape"]), about["data_offsets"]
    if dtype not in DTYPES:
        raise TemporalLensError(f"{path}: '{name}' has the type {dtype}, of which nothing is computed here; save it as F32, F16 or BF16")
    if math.prod(shape) * DTYPES[dtype].itemsize != last - first:
        raise ValueError(f"'{name}' does not fill its place")

    def pieces() -> Iterator[Tensor]:
        with path.open("rb") as file:
            file.seek(begin + first)
            yield from _read_pieces(file, shape, lambda content, count: torch.frombuffer(content, dtype=DTYPES[dtype], count=count))

    return Entry(path, name, shape, pieces)


def _read_pieces(file: Any, shape: tuple[int, ...], decode: Callable[[bytearray, int], Tensor]) -> Iterator[Tensor]:
    """Consecutive rows of a tensor that lies in a file from here on, in order of its elements."""
    row = math.prod(shape[1:])
    itemsize = decode(bytearray(16), 1).element_size()
    rows, left = max(1, CHUNK_BYTES // max(1, row * itemsize)), shape[0] if shape else 1
    while left:
        count = min(rows, left)
        content = bytearray(file.read(count * row * itemsize))
        if len(content) < count * row * itemsize:
            raise ValueError("it ends early")
        left -= count
        if row:
            yield decode(content, count * row).view(count, *shape[1:]) if shape else decode(content, 1).view(())


def _npz(path: Path) -> Entries:
    if not is_zipfile(path):
        raise ValueError("it is truncated, or no .npz")
    with ZipFile(path) as archive:
        return {info.filename.removesuffix(".npy"): _member(path, archive, info) for info in archive.infolist()}


def _member(path: Path, archive: ZipFile, info: ZipInfo) -> Entry:
    """An array of an .npz. Of one in Fortran's order the transpose lies there."""
    _refuse_overfull(path, info)
    with archive.open(info) as file:
        shape, fortran, dtype = read_npy_header(file, info.file_size)
    name = info.filename.removesuffix(".npy")
    if dtype.kind not in "fiub" or dtype.itemsize > 8:
        raise TemporalLensError(f"{path}: '{name}' holds {dtype}, of which nothing is computed here; save it as float32")

    def decode(content: bytearray, count: int) -> Tensor:
        return torch.from_numpy(np.frombuffer(content, dtype, count).astype(dtype.newbyteorder("=")))

    turned = fortran and len(shape) > 1

    def pieces() -> Iterator[Tensor]:
        with ZipFile(path) as again, again.open(info.filename) as file:
            read_npy_header(file, info.file_size)
            yield from _read_pieces(file, shape[::-1] if turned else shape, decode)

    return Entry(path, name, shape, pieces, turned)


def _refuse_overfull(path: Path, info: ZipInfo) -> None:
    """Raise where a part of an archive promises more than it holds, or would unpack to more than memory should."""
    if info.compress_type != ZIP_STORED:
        refuse_bomb(info, path)
    elif info.file_size > min(info.compress_size, path.stat().st_size):
        raise ValueError(f"it promises {info.file_size:,} bytes, which it does not hold")


def _pt(path: Path) -> Entries:
    """PyTorch's archive, mapped. In the middle of a training dictionary_learning keeps its whole state under the same name."""
    if not is_zipfile(path):
        raise ValueError("it is no archive of torch.save, or one of before PyTorch 1.6; save it again with torch.save")
    with ZipFile(path) as archive:
        for info in archive.infolist():
            if info.compress_type != ZIP_STORED:
                raise ValueError("its parts are packed, which torch.save does not do")
            _refuse_overfull(path, info)
    return {name: _tensor(path, name, tensor) for name, tensor in _state(path).items()}


def _state(path: Path) -> dict[str, Any]:
    """What torch.save kept, as tensors that are mapped."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of what a damaged file seems to be
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # its own words say in many lines how to run what the file holds
        raise ValueError("it holds more than tensors, or is damaged; nothing but tensors is read from it") from error
    state = state["ae"] if isinstance(state, dict) and isinstance(state.get("ae"), dict) else state
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise ValueError("it should hold tensors by their names")
    return state


def _tensor(path: Path, name: str, tensor: Any) -> Entry:
    wrong = not isinstance(tensor, Tensor) or not is_dense(tensor) or tensor.is_complex()
    if wrong or tensor.numel() * tensor.element_size() > path.stat().st_size:
        raise TemporalLensError(f"{path}: '{name}' is no ordinary tensor of numbers that lies in this file")
    turned = tensor.ndim == 2 and tensor.stride(0) < tensor.stride(1)  # its columns lie in the file one after the other
    stored = tuple(tensor.T.shape if turned else tensor.shape)
    rows = max(1, CHUNK_BYTES // max(1, math.prod(stored[1:]) * tensor.element_size()))

    def pieces() -> Iterator[Tensor]:
        for first in range(0, stored[0] if stored else 1, rows):  # mapped anew each time: what was read before is given back
            whole = _state(path)[name].detach()
            whole = whole.T if turned else whole
            yield whole[first : first + rows] if stored else whole

    return Entry(path, name, tuple(tensor.shape), pieces, turned)


OPENERS: dict[str, Callable[[Path], Entries]] = {".safetensors": _safetensors, ".npz": _npz, ".pt": _pt}
"""By the ending of a file's name."""
