"""Your own activations: `[N, S, D]` arrays of anything sequential become a store like any harvested one."""

import hashlib
import math
import tokenize
import zlib
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple, SupportsFloat
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo, is_zipfile

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from temporallens.activations.clocks import CLOCKS, GIVEN, MOST_POSITIONS
from temporallens.activations.manifest import StoreDescription
from temporallens.activations.moments import FIRST, NORM, beyond_norm
from temporallens.activations.position_names import NAMES, as_json_keys, checked_names
from temporallens.activations.writer import TARGET, Rows, pair_of_writers, refuse_occupied, target_of
from temporallens.defaults import own_defaults
from temporallens.errors import CannotWriteError, TemporalLensError, did_you_mean
from temporallens.files import abandon, in_order, locked, user_path

CHUNK_BYTES = 32 << 20
NORM_MULTIPLE = 10.0
"""A row is a sink when its norm exceeds this multiple of the median norm (measured on SmolLM2: sinks have 180 times it)."""

LARGEST_UNPACKED = 4 << 30
"""Bytes; an .npz is unpacked into memory, and a small one can hold a hundred times the memory that there is."""
DEFLATE_RATIO = 1100
"""DEFLATE makes nothing smaller than about one 1,030th."""


COMPANIONS = ("mask", "tokens", "documents", "positions")
"""What activations may come with; in a file of several arrays they have these names."""
ACTIVATIONS = ("activations", "x")
"""Names of the activations in such a file."""


class Imported(NamedTuple):
    """Activations and their companions, as files gave them."""

    x: np.ndarray
    companions: dict[str, np.ndarray]  # by what they are: mask, tokens, documents, positions, target
    file: str  # name of the file of the activations
    taken: list[str]  # of each file that holds several arrays a line on which were read as what, and which were not


def read_files(activations: str, name: str | None = None, **given: str | None) -> Imported:
    """Read activations and what comes with them. Each is named as `FILE` or `FILE:NAME`; `name` is that of the activations.

    Of a file that holds several arrays and no name is given for, the one with the name of what is wanted is read; companions that
    stand beside the activations under their names belong to them unless others are `given`. A target, which many files have for
    something else, is read where it is named.
    """
    path, own_name = _file_and_name(activations)
    if name is not None and own_name is not None:
        raise TemporalLensError(f"the activations are named twice, as '{own_name}' and as '{name}': leave one of them out")
    found = {"activations": (path, _chosen(path, own_name if name is None else name, ACTIVATIONS))}
    for what in (*COMPANIONS, TARGET):
        other = given.get(what)
        if other is not None:
            file, inside = _file_and_name(other)
            found[what] = (file, _chosen(file, inside, (what,)))
        elif what in COMPANIONS and what in names_in(path) and what != found["activations"][1] and len(names_in(path)) > 1:
            found[what] = (path, what)
    arrays = {what: read_array(*where) for what, where in found.items()}
    return Imported(arrays.pop("activations"), arrays, path.name, _taken(found))


def _file_and_name(text: str) -> tuple[Path, str | None]:
    """`FILE` or `FILE:NAME`. Colons may belong to either; the longest FILE that there is counts."""
    ends = [len(text), *(index for index in reversed(range(len(text))) if text[index] == ":")]
    end = next((end for end in ends if _is_file(text[:end])), len(text))
    return user_path(text[:end]), text[end + 1 :] if end < len(text) else None


def _is_file(text: str) -> bool:
    """Whether there is such a file; what can be the name of none, as an array's may be, is not one."""
    try:
        return user_path(text).is_file()
    except (TemporalLensError, OSError):
        return False


def _chosen(path: Path, name: str | None, usual: Sequence[str]) -> str | None:
    names = names_in(path)
    return name if name is not None else next((usual_name for usual_name in usual if usual_name in names and len(names) > 1), None)


def _taken(found: dict[str, tuple[Path, str | None]]) -> list[str]:
    lines = []
    for path in dict.fromkeys(path for path, _ in found.values()):
        read_names = {name: what for what, (file, name) in found.items() if file == path}
        if len(names := names_in(path)) > 1:
            read = ", ".join(f"'{name}' as {what}" for name, what in read_names.items())
            rest = ", ".join(f"'{name}'" for name in sorted(names) if name not in read_names)
            lines.append(f"{path.name} holds {len(names)} arrays: {read}" + (f"; not read: {rest}" if rest else ""))
    return lines


def names_in(path: Path) -> list[str]:
    """Names of the arrays of an .npz or .safetensors file; none of what is no such file, which `read_array` will say."""
    from safetensors import SafetensorError, safe_open

    try:
        if path.suffix == ".npz" and is_zipfile(path):
            with ZipFile(path) as archive:
                return [member.removesuffix(".npy") for member in archive.namelist()]
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return list(file.keys())
    except (*UNREADABLE, SafetensorError):
        return []
    return []


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
        read_npy_header(file, path.stat().st_size)
    return np.lib.format.open_memmap(path, mode="r")


def _read_npz(path: Path, name: str | None) -> np.ndarray:
    """One array of an .npz; its sizes are checked before memory is taken for it."""
    with ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        member = members[_only(path, list(members), name)]
        refuse_bomb(member, path)
        with archive.open(member) as file:
            read_npy_header(file, member.file_size)
        with archive.open(member) as file:
            return np.asarray(np.lib.format.read_array(file, allow_pickle=False))


def read_npy_header(file: Any, size: int) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether in Fortran's order, and type of an .npy. Raises ValueError where its header promises more than its `size` bytes
    hold."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > size:
        raise ValueError(f"its header promises an array of shape {shape}, which is more than it holds")
    return shape, fortran, dtype


def refuse_bomb(member: ZipInfo, path: Path) -> None:
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
    if not names:
        raise TemporalLensError(f"{path} holds no array")
    if wanted is not None and wanted not in names:
        raise TemporalLensError(f"{path} has no array '{wanted}'{did_you_mean(wanted, names)}")
    if wanted is None and len(names) != 1:
        raise TemporalLensError(f"{path} holds {len(names)} arrays ({', '.join(sorted(names))}); name the one to read")
    return names[0] if wanted is None else wanted


@own_defaults()
def store_arrays(
    x: Any,
    out: Path | str,
    *,
    mask: Any = None,
    tokens: Any = None,
    documents: Any = None,
    positions: Any = None,
    position_names: Any = None,
    target: Any = None,
    exclude_first: bool | None = None,
    norm_multiple: SupportsFloat | None = NORM_MULTIPLE,
    source: str = "arrays",
    target_source: str = "arrays",
) -> Path:
    """Write `[N, S, D]` activations (an array or tensor of float16, bfloat16, float32 or float64) as a float32 store; its folder.

    mask `[N, S]` is true where there is an activation; tokens `[N, S]` are ids; documents `[N]` say which sequences belong
    together (by default each is a document of its own) and so must not be divided between training and held-out data.
    All may be tensors on any device, and NumPy's masked arrays: what is masked of `x` (whole vectors) or of `mask` is absent,
    a masked token has no id. Positions count from a sequence's first activation, and a hole keeps those of what follows it, unless
    `positions` `[N, S]` say what they are: whole numbers from 0, below 2^20. `position_names` are theirs, a list from 0 or by number.
    `target` `[N, S, E]`, for transcoders, is what they should give of the same tokens, of any width: it becomes a store of its own inside
    this one, and what the norm rule leaves out at either place is left out at both. `source` and `target_source` name the two.
    Arrays that cannot be stored leave nothing behind; an interrupted call goes on when it is repeated with the same arrays, and a
    second process that would write to `out` meanwhile is refused.
    exclude_first leaves index 0 out of training and headline metrics, as language models want it; where nothing is said it is left out
    unless `positions` are given, of which none is apart. The norm rule of `norm_multiple`
    warns and excludes nothing where more than half of the norms are 0. Raises TemporalLensError for another rank, mismatched
    shapes, NaN or infinity.
    """
    x, target = _ordinary(x, "activations"), None if target is None else _ordinary(target, TARGET)
    norm_multiple = _checked_multiple(norm_multiple)
    sequences, length, width = _shape(x)
    output_width = None if target is None else _target_width(target, sequences, length)
    chunk = max(1, CHUNK_BYTES // (length * max(width, output_width or 0) * 4))
    parts = [slice(first, min(first + chunk, sequences)) for first in range(0, sequences, chunk)]
    mask = _present(x, mask, parts)
    mask = mask if target is None else _present(target, mask, parts)
    tokens = np.full((sequences, length), -1) if tokens is None else _whole(tokens, "tokens", (sequences, length), missing=-1)
    documents = np.arange(sequences) if documents is None else _whole(documents, "documents", (sequences,))
    exclude_first = positions is None if exclude_first is None else exclude_first
    given = None if positions is None else _positions(positions, mask > 0)
    names = None if position_names is None else _names(position_names, given, mask > 0)
    stored = (x, mask, tokens, documents, *(array for array in (given, target) if array is not None))
    description = StoreDescription(
        source={
            "kind": "arrays",
            "file": source,
            "sha256": _content(stored, parts),
        },
        policies={
            "rows": "arrays, holes kept" if _has_holes(mask) else "arrays",
            "clock": "index" if given is None else GIVEN,
            **({} if names is None else {NAMES: as_json_keys(names)}),
            "context_length": length,
            "position_zero": "excluded" if exclude_first else "kept",
            "norm_multiple": norm_multiple,
            **({} if target is None else {TARGET: target_source}),
        },
        width=width,
        dtype="float32",
        positions=CLOCKS["index"].size(length) if given is None else int(given.max()) + 1,
    )
    out = user_path(out)
    refuse_occupied(out)
    with locked(out):
        beside = None if output_width is None else target_of(description).model_copy(update={"width": output_width})
        writers = pair_of_writers(out, description, beside)
        try:
            for number, part in enumerate(parts):
                if number >= min(writer.appends_done for writer in writers):
                    arrays = [array[part] for array in (target, x) if array is not None]
                    pair = _rows(arrays, mask[part], tokens[part], documents[part], part.start, exclude_first, norm_multiple)
                    if given is not None:
                        position = torch.from_numpy(given[part][mask[part] > 0])
                        pair = [rows._replace(position=position) for rows in pair]
                    for writer, rows in zip(writers, pair, strict=True):
                        if number >= writer.appends_done:
                            writer.append(rows)
            return [writer.finish() for writer in writers][-1]
        except CannotWriteError:
            raise
        except TemporalLensError:
            for writer in writers:
                writer.discard()
            abandon(out)
            raise


def _ordinary(x: Any, name: str) -> Any:
    """As an array, but what has a type of its own, which may lie in a file and is read piece by piece."""
    if isinstance(x, Tensor):
        return _dense(x, name)
    return x if hasattr(x, "dtype") else _array(x, name)


def _target_width(target: Any, sequences: int, length: int) -> int:
    shape = _shape(target, "the target")
    if shape[:2] != (sequences, length):
        raise TemporalLensError(
            f"the target has shape {shape}, and should have {sequences} sequences of {length} positions, as the activations have"
        )
    return shape[2]


def _content(arrays: tuple[Any, ...], parts: list[slice]) -> str:
    """SHA-256 of all that is stored, so that an interrupted call is not continued with other arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        for part in parts:
            values = in_order(array[part]).view(torch.uint8).numpy() if isinstance(array, Tensor) else np.asarray(array[part])
            digest.update(np.ascontiguousarray(values).view(np.uint8).data)
    return digest.hexdigest()


def _checked_multiple(multiple: Any) -> float | None:
    if multiple is None:
        return None
    try:
        number = float(multiple) if isinstance(multiple, Real) and not isinstance(multiple, bool) else math.nan
    except OverflowError:
        number = math.inf
    if not 1 < number < math.inf:
        raise TemporalLensError(f"norm_multiple is {multiple!r}: it should be a number greater than 1, or None for no norm rule")
    return number


def _shape(x: Any, name: str = "activations") -> tuple[int, int, int]:
    """Sequences, positions and width of activations that can be stored."""
    if len(x.shape) != 3:
        raise TemporalLensError(f"{name} must have shape [sequences, positions, width]; this array has shape {tuple(x.shape)}")
    sequences, length, width = (int(size) for size in x.shape)
    if 0 in (sequences, length, width):
        raise TemporalLensError(f"{name} must not be empty; this array has shape {(sequences, length, width)}")
    first = _array(x[:1], name)
    if not (first.dtype.kind == "f" or first.dtype.name == "bfloat16"):
        raise TemporalLensError(f"{name} must be floating point; this array holds {first.dtype}")
    return sequences, length, width


def _array(value: Any, name: str) -> np.ndarray:
    """What is in `value`, wherever it lies, as an array of the same numbers; a masked array stays one."""
    if isinstance(value, Tensor):
        tensor = _dense(value, name)
        unknown = tensor.is_floating_point() and tensor.dtype not in {torch.float16, torch.float32, torch.float64}
        return np.asarray((tensor.float() if unknown else tensor).cpu().numpy())  # NumPy has no bfloat16
    if isinstance(value, str | Path | Mapping):
        remedy = "take one of its arrays" if isinstance(value, Mapping) else "read a file with importing.read_array"
        raise TemporalLensError(f"{name} should be an array, and this is a {type(value).__name__}: {remedy}")
    try:
        array = _stacked(value) if isinstance(value, list | tuple) else np.asanyarray(value)
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise TemporalLensError(f"{name} should be one array; of a {type(value).__name__} NumPy makes none: {error}") from error
    return array if isinstance(array, np.ma.MaskedArray) else np.asarray(array)


def _stacked(parts: Sequence[Any]) -> np.ndarray:
    """An array of lists, however deep: masks and what NumPy knows no type for are kept in each part."""
    nested = any(isinstance(part, list | tuple | np.ma.MaskedArray | Tensor) for part in parts)
    arrays = [_array(part, "a part of a list") for part in parts] if nested else parts
    masked = nested and any(isinstance(array, np.ma.MaskedArray) for array in arrays)
    return np.ma.stack(arrays) if masked else np.asanyarray(arrays)


def is_dense(tensor: Tensor) -> bool:
    """Whether a tensor is an ordinary one, with a value for every place."""
    return not (tensor.is_meta or tensor.is_nested or tensor.is_quantized or tensor.layout != torch.strided)


def _dense(tensor: Tensor, name: str) -> Tensor:
    """The values of a tensor, which an ordinary one has."""
    if not is_dense(tensor):
        found = "has no values (it is on the device 'meta')" if tensor.is_meta else "is nested, sparse or quantised"
        raise TemporalLensError(f"{name} should be an ordinary dense tensor; this one {found}")
    return tensor.detach().resolve_conj().resolve_neg()


def _companion(value: Any, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """`value` as an array of that shape."""
    array = _array(value, name)
    if array.shape != shape:
        raise TemporalLensError(f"{name} has shape {array.shape}, the activations need {shape}")
    return array


def _whole(value: Any, name: str, shape: tuple[int, ...], missing: int | None = None) -> np.ndarray:
    """Ids of that shape; `missing` stands for masked ones, where there may be any."""
    array = _companion(value, name, shape)
    if array.dtype.kind not in "iu":
        raise TemporalLensError(f"{name} should hold integers; this array holds {array.dtype}")
    masked, array = np.ma.getmaskarray(array), np.ma.getdata(array)
    if masked.any() and missing is None:
        raise TemporalLensError(f"{name} {_first_index(masked)} is masked: each sequence needs one")
    largest = int(np.where(masked, 0, array).max())
    if largest > np.iinfo(np.int64).max:
        raise TemporalLensError(f"{name} should hold integers below 2^63; the largest of these is {largest}")
    return np.where(masked, missing or 0, array.astype(np.int64)) if masked.any() else array


def _positions(value: Any, present: np.ndarray) -> Int[np.ndarray, "N S"]:
    """Positions of activations; 0 where there is none."""
    array = _whole(value, "positions", present.shape, missing=-1)
    wrong = present & ((array < 0) | (array >= MOST_POSITIONS))
    if wrong.any():
        found = int(array[wrong][0])
        said = "has none" if found < 0 and np.ma.is_masked(value) else f"is {found}"
        raise TemporalLensError(f"the position {_first_index(wrong)} {said}: positions are whole numbers from 0 to {MOST_POSITIONS - 1:,}")
    return np.where(present, array, 0).astype(np.int64)


def _names(names: Any, positions: Int[np.ndarray, "N S"] | None, present: np.ndarray) -> dict[int, str]:
    """Names of every position that occurs."""
    found = checked_names(names)
    if positions is None:
        raise TemporalLensError("position_names name what positions say: give positions too")
    if nameless := sorted(set(np.unique(positions[present]).tolist()) - found.keys()):
        raise TemporalLensError(f"position {nameless[0]} occurs and has no name: position_names name every one, or are left out")
    return found


def _present(x: Any, given: Any, parts: list[slice]) -> np.ndarray:
    """Where there is an activation: where `given` says so, and nothing is masked."""
    sequences, length, _ = x.shape
    mask = np.ones((sequences, length), bool)
    if given is not None:
        mask = _companion(given, "mask", (sequences, length))
        if mask.dtype.kind not in "biuf":
            raise TemporalLensError(f"mask should hold true and false, or 1 and 0; this array holds {mask.dtype}")
        values = np.ma.getdata(mask)
        odd = ~((values == 0) | (values == 1)) & ~np.ma.getmaskarray(mask)
        if odd.any():
            raise TemporalLensError(
                f"mask {_first_index(odd)} is {values[odd][0]}: it should be 1 where there is an activation and 0 where none is"
            )
        mask = np.ma.filled(mask, 0)
    if isinstance(x, np.ma.MaskedArray):
        mask = (mask > 0) & np.concatenate([_unmasked(x[part], part.start) for part in parts])
    return mask


def _unmasked(x: np.ma.MaskedArray, first: int) -> np.ndarray:
    """Which vectors are not masked, of sequences that begin with number `first`."""
    masked = np.ma.getmaskarray(x)
    whole, partly = masked.all(2), masked.any(2)
    if (whole != partly).any():
        row, column = np.argwhere(whole != partly)[0].tolist()
        raise TemporalLensError(
            f"the activation at [{first + row}, {column}] is masked in {masked[row, column].sum()} of {x.shape[2]} dimensions: "
            "mask a vector as a whole, or fill in what is masked"
        )
    return np.asarray(~whole)


def _first_index(wrong: np.ndarray) -> str:
    return f"at [{', '.join(map(str, np.argwhere(wrong)[0].tolist()))}]"


def _has_holes(mask: np.ndarray) -> bool:
    """Whether anything is absent between a sequence's first activation and its last."""
    present = mask > 0
    return bool(((np.diff(present.astype(np.int8), axis=1) == 1).sum(1) + present[:, 0] > 1).any())


def _rows(
    arrays: Sequence[Any],
    mask: np.ndarray,
    tokens: np.ndarray,
    documents: np.ndarray,
    first: int,
    exclude_first: bool,
    multiple: float | None,
) -> list[Rows]:
    """Of one array, or of a pair, which leave out the same."""
    several = [x.cpu().float() if isinstance(x, Tensor) else _single(np.ma.getdata(_array(x, "activations"))) for x in arrays]
    count, length, _ = several[0].shape
    present = torch.from_numpy(np.array(mask > 0))
    if not bool(present.any(1).all()):
        empty = first + int((~present.any(1)).nonzero()[0])
        raise TemporalLensError(f"sequence {empty} is masked out entirely; leave it out of the arrays")
    opening = present.to(torch.uint8).argmax(1, keepdim=True)
    index = (torch.arange(length) - opening)[present]
    sequence: Int[Tensor, " N"] = torch.arange(first, first + count)[:, None].expand(count, length)[present]
    excluded = torch.zeros(len(index), dtype=torch.uint8)
    if exclude_first:
        excluded |= (index == 0).to(torch.uint8) * FIRST
    if multiple is not None:
        norms = [torch.linalg.vector_norm(values[present], dim=1) for values in several]
        excluded |= torch.stack([beyond_norm(own, index > 0, multiple) for own in norms]).any(0).to(torch.uint8) * NORM
    columns = Rows(
        x=several[0][present],
        position=index,
        index=index,
        document_position=index,
        sequence=sequence,
        document=torch.from_numpy(documents.astype(np.int64))[:, None].expand(count, length)[present],
        token=torch.from_numpy(tokens.astype(np.int64))[present],
        excluded=excluded,
    )
    return [columns._replace(x=values[present]) for values in several]


def _single(values: np.ndarray) -> Float[Tensor, "N S D"]:
    """As float32 of this machine; what float32 cannot hold becomes infinity, which a store refuses."""
    with np.errstate(over="ignore"):
        return torch.from_numpy(np.array(values, dtype=np.float32))
