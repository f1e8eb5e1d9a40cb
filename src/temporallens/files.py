"""Reading and writing, safely: every file is written to a temporary name, flushed and renamed; nothing is pickled.

Everything above this floor writes through these functions, so a full disk or a killed process leaves either the old file or
the new one, never half of one, and the sentence that reaches the user names the path. What they write carries its own checksum,
which is verified before a reader gets anything; a file without one is refused, unless other programs write such files too.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock

from temporallens.errors import CannotWriteError, TemporalLensError

REMEDIES = {
    errno.ENOSPC: "no space is left on the disk; free some and run the same command again",
    errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
    errno.EFBIG: "the file would be larger than the system allows; raise the limit (ulimit -f) or choose another output folder",
    errno.EIO: "the disk does not take it; check the disk, or choose another output folder",
    errno.ENOENT: "its folder cannot be made there; choose another output folder",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.EROFS: "the file system is read-only; choose another output folder",
    errno.EACCES: "permission is denied; choose a folder that you may write to",
    errno.EPERM: "permission is denied; choose a folder that you may write to",
    errno.ENOTDIR: "a part of this path is a file, not a folder; choose another output folder",
    errno.EISDIR: "this path is a folder where a file should be written; choose another output folder",
    errno.ELOOP: "its symbolic links lead in a circle; choose another output folder",
    errno.EBUSY: "it is in use by the system; choose another output folder",
    errno.ESTALE: "the network file system has lost it; mount it again, or choose another output folder",
    errno.EMFILE: "too many files are open; raise the limit (ulimit -n) and run the same command again",
    errno.ENFILE: "too many files are open on this machine; close some programs and run the same command again",
}

LARGEST_JSON = 1 << 28
"""Bytes; what is parsed takes about ten times its size in memory. The manifest of a store of a terabyte has 4 MB."""

CHECKSUM = "checksum"
"""Key under which a file states its own SHA-256."""
SEAL = f'"{CHECKSUM}": "{{}}"\n}}}}\n'
"""How a JSON file ends: the checksum of every byte before these."""
SEAL_LENGTH = len(SEAL.format("0" * 64))

LEFTOVER = re.compile(r"\..+\.[a-z0-9_]{8}\.partial")
"""Names of temporary files, as `write_atomically` makes them."""


LONGEST_NAME = 255
"""Bytes of the name of a file or folder, on every system in use."""


def user_path(path: object) -> Path:
    """A path as a user gives it, `~` being the home folder. Shells leave it alone in `--out=~/x`, and Python does everywhere.

    Raises TemporalLensError for what is no path, for an empty one, and for names that no file can have.
    """
    if not isinstance(path, str | os.PathLike):
        raise TemporalLensError(f"a path should be a string or a Path, and this is {path!r}")
    if isinstance(path, str) and not path.strip():
        raise TemporalLensError("a path is empty: it should name a file or folder ('.' is the current one)")
    try:
        name = os.fsencode(str(path).encode("utf-8"))
    except UnicodeEncodeError as error:
        raise TemporalLensError(f"{path} holds half of a character, which no path can") from error
    if b"\0" in name or max(map(len, name.split(b"/"))) > LONGEST_NAME:
        raise TemporalLensError(f"{str(path)[:60]}... is no path: it holds a zero byte, or a name of more than {LONGEST_NAME} bytes")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise TemporalLensError(f"{path} begins with a user who has no home folder here; write ./{path} for a file of that name") from error


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write `path` into a sentence that names it and the remedy."""
    try:
        yield
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0)
        if remedy is None:
            raise
        raise CannotWriteError(f"cannot write {path}: {remedy}") from error


def make_folder(path: Path) -> Path:
    with explained(path):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise CannotWriteError(f"cannot write {path}: a file of that name is in the way; choose another output folder") from error
    return path


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to the disk and rename it to `path`."""
    make_folder(path.parent)
    with explained(path):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def link_or_copy(source: Path, path: Path) -> None:
    """The content of `source` at `path` too: without taking its space again where the file system has links."""

    def write(place: Path) -> None:
        place.unlink(missing_ok=True)
        try:
            place.hardlink_to(source)
        except OSError:
            shutil.copyfile(source, place)

    write_atomically(path, write)


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_bytes(text.encode("utf-8")))


def canonical_json(value: Any) -> str:
    """The one spelling of `value` that fingerprints are taken of: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def fingerprint(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value`, as 64 hex digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a mapping with its checksum as its last key, which `read_json` verifies and takes off again."""
    write_text(path, _sealed(_lines(value)))


def _lines(value: dict[str, Any]) -> str:
    """A line for each key: with more of them, Python's encoder in C is not used, and a large file takes seconds."""
    entries = [f" {json.dumps(key)}: {json.dumps(entry, allow_nan=False)}" for key, entry in value.items()]
    return "{\n" + ",\n".join(entries) + "\n}\n" if entries else "{}\n"


def _sealed(text: str) -> str:
    """The JSON text of a mapping, closed by its checksum."""
    head = text.removesuffix("}\n").rstrip()
    head += "\n " if head == "{" else ",\n "
    return head + SEAL.format(hashlib.sha256(head.encode()).hexdigest())


def read_json(path: Path, what: str, remedy: str = "", foreign: bool = False) -> Any:
    """Read `path`; `what` names the file's role in the sentence that a user gets when it is missing or broken, `remedy` says there
    what to do about a broken one. A file that other programs write too (`foreign`) needs no checksum."""
    content = _content(path, what)
    try:
        text = content.decode("utf-8")
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise TemporalLensError(f"{path} is not readable as {what}: {error}{_then(remedy)}") from error
    if foreign and not (isinstance(value, dict) and any(_is_checksum_key(key) for key in value)):
        return value
    if not isinstance(value, dict) or text[-SEAL_LENGTH:] != SEAL.format(hashlib.sha256(text[:-SEAL_LENGTH].encode()).hexdigest()):
        raise _changed(path, what, remedy)
    del value[CHECKSUM]
    return value


def _changed(path: Path, what: str, remedy: str) -> TemporalLensError:
    return TemporalLensError(f"{path}, {what}, does not have the checksum that it should: it was changed or damaged{_then(remedy)}")


def _then(remedy: str) -> str:
    return f"; {remedy}" if remedy else ""


def _content(path: Path, what: str) -> bytes:
    """All of a file that should be a small one."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise TemporalLensError(f"{path} is no file: it should be {what}")
        if status.st_size > LARGEST_JSON:
            raise TemporalLensError(f"{path} is larger than {LARGEST_JSON:,} bytes: it cannot be {what}")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise TemporalLensError(f"{path} does not exist: it should be {what}") from error
    except OSError as error:
        raise TemporalLensError(f"{path} cannot be read: {error.strerror}") from error


def _refuse_constant(word: str) -> Any:
    raise ValueError(f"{word} is no number in JSON")


def _is_checksum_key(key: str) -> bool:
    """Whether a key is that of a checksum, or was before one of its letters was damaged."""
    return len(key) == len(CHECKSUM) and sum(a != b for a, b in zip(key, CHECKSUM, strict=True)) <= 1


def write_tensors(path: Path, tensors: dict[str, Any], metadata: dict[str, Any] | None = None) -> str:
    """Write a safetensors file, with its checksum in its header; return that of its tensors alone.

    `metadata` is stored as one JSON string: several keys would be written in random order.
    """
    from safetensors.torch import save_file

    apart = _apart(tensors)
    digest = tensor_digest(apart)
    header = {"temporallens": canonical_json({**(metadata or {}), CHECKSUM: _combined(digest, metadata or {})})}

    def write(temporary: Path) -> None:
        try:
            save_file(apart, temporary, metadata=header)
        except Exception as error:  # safetensors wraps the system's error in its own, text only
            raise _as_system_error(error) from error

    write_atomically(path, write)
    return digest


def _apart(tensors: dict[str, Any]) -> dict[str, Any]:
    """The tensors as safetensors takes them: in order of their elements, and no two in the same memory."""
    apart, taken = {}, set()
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        apart[name] = in_order(tensor).clone() if memory in taken else in_order(tensor)
        taken.add(memory)
    return apart


def in_order(tensor: Any) -> Any:
    """The same tensor on the processor, its elements one after the other. To PyTorch any stride of a dimension of size 1 is
    contiguous, so `contiguous()` would leave an expanded one as it is, and its bytes could not be looked at."""
    import torch

    plain = tensor.detach().cpu()
    wanted = torch.empty(plain.shape, dtype=plain.dtype, device="meta").stride()
    return plain if plain.stride() == wanted else plain.clone(memory_format=torch.contiguous_format)


def tensor_digest(tensors: dict[str, Any]) -> str:
    """SHA-256 over names, types, shapes and contents of tensors, in order of name."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = in_order(tensors[name])
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _combined(digest: str, metadata: dict[str, Any]) -> str:
    return fingerprint([digest, metadata])


def _as_system_error(error: Exception) -> Exception:
    for number in REMEDIES:
        if os.strerror(number) in str(error) or f"os error {number}" in str(error):
            return OSError(number, os.strerror(number))
    return error


def read_tensors(path: Path, what: str, remedy: str = "", foreign: bool = False) -> tuple[dict[str, Any], Any]:
    """Read a safetensors file that fits in memory; return its tensors and the JSON metadata (None when it has none). A file that
    other programs write too (`foreign`) needs no checksum."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        raise TemporalLensError(f"{path} does not exist: it should be {what}")
    if not path.is_file():
        raise TemporalLensError(f"{path} is no file: it should be {what}")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        metadata = _metadata(header)
    except (SafetensorError, ValueError, TypeError, RuntimeError, OSError, RecursionError) as error:
        raise TemporalLensError(f"{path} is not readable as {what} (truncated, or another format): {error}{_then(remedy)}") from error
    stated = metadata.pop(CHECKSUM, None)
    if not (foreign and stated is None) and stated != _combined(tensor_digest(tensors), metadata):
        raise _changed(path, what, remedy)
    return tensors, metadata or None


def _metadata(header: dict[str, str]) -> dict[str, Any]:
    """Ours of the header of a safetensors file. Raises ValueError where a letter of it was damaged."""
    if len(header) == 1 and "temporallens" not in header and len(next(iter(header))) == len("temporallens"):
        raise ValueError(f"its header is called '{next(iter(header))}'")
    metadata = json.loads(header.get("temporallens", "{}"), parse_constant=_refuse_constant)
    if not isinstance(metadata, dict):
        raise ValueError("its header is no mapping")
    damaged = [key for key in metadata if key != CHECKSUM and _is_checksum_key(key)]
    if damaged:
        raise ValueError(f"its header names '{damaged[0]}'")
    return metadata


def sha256(path: Path) -> str:
    """Of a file's bytes, as 64 hex digits. Raises TemporalLensError when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise TemporalLensError(f"{path} cannot be read: {error.strerror}") from error


def inside(folder: Path, name: str) -> Path:
    """`folder / name`, refused when `name` (from a file that may be a stranger's) would leave the folder."""
    path = folder / name
    if "\0" in name or Path(name).is_absolute() or not path.resolve().is_relative_to(folder.resolve()):
        raise TemporalLensError(f"{folder} names the file {name!r}, which lies outside of it; refusing to open it")
    return path


@contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold `folder` for this process; a second process is refused at once instead of writing beside the first, or, with `wait`, goes on
    when the first is done, and should look again at what there is to do.

    What killed processes left half written in it is removed: nobody else is writing there.
    """
    make_folder(folder)
    with explained(folder):
        lock = filelock.FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=-1 if wait else 0)
        except filelock.Timeout as error:
            raise TemporalLensError(f"{folder} is in use by another temporallens process; wait for it, or choose another folder") from error
    try:
        _sweep(folder)
        yield
    finally:
        lock.release()


def _sweep(folder: Path) -> None:
    """Remove the temporary files of killed processes, anywhere in `folder`."""
    with explained(folder):
        for path in folder.rglob(".*.partial"):
            if LEFTOVER.fullmatch(path.name) and path.is_file():
                path.unlink(missing_ok=True)


def refuse_full(out: Path, but: Container[str] = ()) -> None:
    """Raise TemporalLensError where `out` is no folder that something can be written into."""
    with explained(out):
        if out.exists() and (not out.is_dir() or any(path.name not in but for path in out.iterdir())):
            found = "not empty" if out.is_dir() else "a file"
            raise TemporalLensError(f"{out} is {found}: choose an empty folder")


def abandon(folder: Path) -> None:
    """Remove a folder that this process has locked and that holds nothing but its lock; who waits for that will make another."""
    with explained(folder):
        if [path.name for path in folder.iterdir()] == [".lock"]:
            (folder / ".lock").unlink()
            folder.rmdir()
