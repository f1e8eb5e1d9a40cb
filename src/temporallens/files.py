"""Reading and writing, safely: every file is written to a temporary name, flushed and renamed; nothing is pickled.

Everything above this floor writes through these functions, so a full disk or a killed process leaves either the old file or
the new one, never half of one, and the sentence that reaches the user names the path.
"""

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock

from temporallens.errors import TemporalLensError

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
}


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write `path` into a sentence that names it and the remedy."""
    try:
        yield
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0)
        if remedy is None:
            raise
        raise TemporalLensError(f"cannot write {path}: {remedy}") from error


def make_folder(path: Path) -> Path:
    with explained(path):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise TemporalLensError(f"cannot write {path}: a file of that name is in the way; choose another output folder") from error
    return path


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
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


def write_bytes(path: Path, content: bytes) -> None:
    write_atomically(path, lambda temporary: _write(temporary, content))


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def canonical_json(value: Any) -> str:
    """The one spelling of `value` that fingerprints are taken of: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def fingerprint(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value`, as 64 hex digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path, what: str) -> Any:
    """Read `path`; `what` names the file's role in the sentence that a user gets when it is missing or broken."""
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise TemporalLensError(f"{path} does not exist: it should be {what}") from error
    except (ValueError, RecursionError) as error:
        raise TemporalLensError(f"{path} is not readable as {what}: {error}") from error
    except OSError as error:
        raise TemporalLensError(f"{path} cannot be read: {error.strerror}") from error


def write_tensors(path: Path, tensors: dict[str, Any], metadata: Any = None) -> None:
    """Write a safetensors file. `metadata` is stored as one JSON string: several keys would be written in random order."""
    from safetensors.torch import save_file

    header = None if metadata is None else {"temporallens": canonical_json(metadata)}
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    def write(temporary: Path) -> None:
        try:
            save_file(contiguous, temporary, metadata=header)
        except Exception as error:  # safetensors wraps the system's error in its own, text only
            raise _as_system_error(error) from error

    write_atomically(path, write)


def _as_system_error(error: Exception) -> Exception:
    for number in REMEDIES:
        if os.strerror(number) in str(error) or f"os error {number}" in str(error):
            return OSError(number, os.strerror(number))
    return error


def read_tensors(path: Path, what: str) -> tuple[dict[str, Any], Any]:
    """Read a safetensors file that fits in memory; return its tensors and the JSON metadata (None when it has none)."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        metadata = json.loads(header["temporallens"]) if "temporallens" in header else None
    except FileNotFoundError as error:
        raise TemporalLensError(f"{path} does not exist: it should be {what}") from error
    except (SafetensorError, ValueError, OSError) as error:
        raise TemporalLensError(f"{path} is not readable as {what} (truncated, or another format): {error}") from error
    return tensors, metadata


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def inside(folder: Path, name: str) -> Path:
    """`folder / name`, refused when `name` (from a file that may be a stranger's) would leave the folder."""
    path = folder / name
    if Path(name).is_absolute() or not path.resolve().is_relative_to(folder.resolve()):
        raise TemporalLensError(f"{folder} names the file '{name}', which lies outside of it; refusing to open it")
    return path


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process; a second process is refused at once instead of writing beside the first."""
    make_folder(folder)
    with explained(folder):
        lock = filelock.FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout as error:
            raise TemporalLensError(f"{folder} is in use by another temporallens process; wait for it, or choose another folder") from error
    try:
        yield
    finally:
        lock.release()
