"""SHA-256 of large files, computed once: what a file's path, size and time of change are known to stand for is kept in the user's cache."""

import hashlib
from contextlib import suppress
from pathlib import Path

from temporallens.activations.language.shipped import MODELS, cache_folder
from temporallens.errors import CannotWriteError, TemporalLensError
from temporallens.files import fingerprint, read_json, sha256, user_path, write_json


def known_sha256(path: Path) -> str:
    """SHA-256 of a file, as 64 hex digits. Raises TemporalLensError when it cannot be read."""
    resolved = path.resolve()
    try:
        status = resolved.stat()
    except OSError as error:
        raise TemporalLensError(f"{path} cannot be read: {error.strerror}") from error
    key = {"path": str(resolved), "size": status.st_size, "mtime_ns": status.st_mtime_ns, "ctime_ns": status.st_ctime_ns}
    record = cache_folder() / "contents" / f"{fingerprint(str(resolved))[:32]}.json"
    known = _read(record)
    if known.get("key") == key:
        return str(known["sha256"])
    content = sha256(resolved)
    with suppress(CannotWriteError):  # a cache that cannot be written costs time, and nothing else
        write_json(record, {"key": key, "sha256": content})
    return content


def _read(record: Path) -> dict[str, object]:
    """What is known of a file; nothing where that is missing or damaged."""
    try:
        return read_json(record, "the checksum of a file") if record.exists() else {}
    except (TemporalLensError, OSError):
        return {}


def content_of(name: str) -> str | None:
    """What pins the content of a model, a text or a folder: a shipped model's SHA-256, that of a file or of a folder's files, None for a
    hub name."""
    if name in MODELS:
        return MODELS[name].wheel.sha256
    path = user_path(name)
    if path.is_file():
        return known_sha256(path)
    if not path.is_dir():
        return None
    digest = hashlib.sha256()
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        digest.update(f"{file.relative_to(path)}\n{known_sha256(file)}\n".encode())
    return digest.hexdigest()
