"""Text as documents: the shipped speeches, files and folders, hub data sets, or any strings that a caller brings.

A corpus yields one string per document and can be read again from the start unless it is an iterator; documents that hold nothing
but white space are left out. Files are read line by line or batch by batch (`readers`), so memory holds one document, not a corpus.
Where the content can be known beforehand it has a fingerprint, so that a harvest is never taken for that of another text.
"""

import hashlib
import itertools
import os
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub.errors import HTTPError

from temporallens.activations.language import shipped
from temporallens.activations.language.readers import (
    TABLES,
    content_sha256,
    explained,
    read_plain,
    read_rows,
    refuse_half_character,
    text_column,
)
from temporallens.errors import TemporalLensError, did_you_mean, first_line
from temporallens.files import fingerprint, user_path

ENDINGS = (".txt", ".md", *TABLES)
"""Of names of files that are read as text."""
HUB_NAME = re.compile(r"(?P<path>[\w.-]+/[\w.-]+)(:(?P<configuration>[\w.-]+))?(@(?P<revision>[\w./-]+))?")
COMMIT = re.compile(r"[0-9a-f]{40}")
GIVEN = "given"
"""The name of strings that are handed over in Python."""
HUB_SECONDS = 10.0
"""For which the hub is waited for when it is asked for a commit."""


@dataclass(frozen=True)
class Corpus:
    """Documents with a name; iterating raises TemporalLensError when there is not a word in them."""

    name: str  # as the user wrote it; GIVEN for strings handed over in Python
    fingerprint: str | None  # of the content; None where that cannot be known beforehand, which is never equal to another None
    read: Callable[[], Iterator[str]]
    summary: str | None = None  # of a folder: what of it is read and what is left out

    def __iter__(self) -> Iterator[str]:
        written = (document for document in self.read() if document and not document.isspace())
        first = next(written, None)
        if first is None:
            raise TemporalLensError(f"the text '{self.name}' holds no words: there is no document in it, or every one is empty")
        return itertools.chain([first], written)

    @property
    def unknown(self) -> str:
        """Why there is no fingerprint, and what to do about it."""
        if HUB_NAME.fullmatch(self.name):
            return f"the hub cannot be asked which commit of {self.name} there is; name one ({self.name.partition('@')[0]}@COMMIT)"
        return "texts of an iterator cannot be compared with those of before; give a list"


def documents(text: Any, column: str | None = None, split: str | None = None) -> Iterator[str]:
    """The documents of `text`; see `open_corpus`."""
    return iter(open_corpus(text, column, split))


def open_corpus(text: Any, column: str | None = None, split: str | None = None) -> Corpus:
    """Find out what `text` names: a shipped text, a .txt, .md, .jsonl, .csv or .parquet file, a folder of them, a hub data set, or strings.

    `column` names the text in tables (by default `text`, or the only column there is; the only one of a CSV file must be named unless it
    is called `text`, for it might be a first text without a header), `split` the part of a hub data set. Nothing is asked of the hub here.
    Raises TemporalLensError when there is no such text, or no such column, and for whatever else a caller hands over.
    """
    if not isinstance(text, str | Path):
        return _given(text)
    name = str(text)
    if name in shipped.TEXTS:
        return Corpus(name, shipped.TEXTS[name].content, shipped.TEXTS[name].read)
    if not name.strip():
        raise TemporalLensError(
            f"the name of the text is empty: it should be a file, a folder, a hub data set or one of {', '.join(shipped.TEXTS)}"
        )
    if not _may_be_a_path(name):
        raise _no_text(name, Path(name))
    path = user_path(name)
    if path.is_dir():
        found = folder_content(path)
        if not found.files:
            raise TemporalLensError(f"the folder {name} holds no text: no file ends in {', '.join(ENDINGS)}; {found.left_out}")
        return _of_files(name, found.files, column, f"{name}: {found.counted}; {found.left_out}")
    if path.is_file():
        if path.suffix.lower() not in ENDINGS:
            raise TemporalLensError(f"{name} is not read as text: its name should end in {', '.join(ENDINGS)}")
        return _of_files(name, [path], column)
    if isinstance(text, str) and (hub := _on_hub(text)):
        commit = hub["revision"] or ""
        return Corpus(name, f"commit:{commit}" if COMMIT.fullmatch(commit) else None, lambda: _hub_documents(name, column, split))
    raise _no_text(name, path)


def _no_text(name: str, path: Path) -> TemporalLensError:
    if not _may_be_a_path(name) or len(name.splitlines()) > 1:
        return TemporalLensError("the text should be the name of a file or folder; give a text itself in a list: [text]")
    where = "" if path.is_absolute() else f" in {Path.cwd()} (where a command is given relative paths begin, those of a study too)"
    hint = "" if "/" in name or path.suffix else did_you_mean(name, shipped.TEXTS)
    return TemporalLensError(f"there is no text at {name}: no such file or folder{where}{hint}")


def _may_be_a_path(name: str) -> bool:
    """Whether a file can be called so; of longer names the system says neither that they exist nor that they do not."""
    return bool(name.strip()) and len(name) < 4096 and all(len(part.encode(errors="replace")) <= 255 for part in name.split("/"))


# Strings handed over in Python


def _given(texts: Any) -> Corpus:
    _refuse_tables(texts)
    if isinstance(texts, Iterator):
        return Corpus(GIVEN, None, lambda: _strings(texts))
    digest, known = hashlib.sha256(), array("q")
    for text in _strings(texts):
        digest.update(f"{len(text)} ".encode())
        digest.update(text.encode())
        known.append(str.__hash__(text))
    return Corpus(GIVEN, f"sha256:{digest.hexdigest()}", lambda: _as_before(texts, known))


def _as_before(texts: Iterable[Any], known: Sequence[int]) -> Iterator[str]:
    """The texts once more. Raises TemporalLensError where they are others than those of the fingerprint, as those of a shuffle are."""
    for number, (text, expected) in enumerate(itertools.zip_longest(_strings(texts), known)):
        if text is None or expected is None or str.__hash__(text) != expected:
            raise TemporalLensError(
                f"document {number} of the given texts is another, or missing, when they are read again: texts that change from one "
                "reading to the next belong to no store; give a list"
            )
        yield text


def _refuse_tables(texts: Any) -> None:
    """Raise TemporalLensError for what can be iterated over and gives something else than texts in an order of their own."""
    kind = type(texts).__name__
    if isinstance(texts, Mapping):
        known = ", ".join(f"'{key}'" for key in itertools.islice(texts, 5))
        raise TemporalLensError(f"the texts are a mapping ({kind}) with the keys {known}; give the texts under one of them, or a list")
    if hasattr(texts, "columns"):
        raise TemporalLensError(f"the texts are a table ({kind}); give the column that holds them, as in table['text']")
    if isinstance(texts, set | frozenset):
        raise TemporalLensError(f"the texts are a {kind}, which has no order; give a list, for documents are counted in their order")
    if isinstance(texts, bytes | bytearray | memoryview):
        raise TemporalLensError(f"the texts are {kind}; give a list of strings, or the path of a file")
    if getattr(texts, "ndim", 1) != 1:
        raise TemporalLensError(f"the texts are an array of {texts.ndim} dimensions; give one dimension, a string for each document")
    try:
        iter(texts)
    except TypeError as error:
        remedy = "call it" if callable(texts) else "give a list of strings, or the path of a file or folder"
        raise TemporalLensError(f"the texts are of type {kind}, which gives none; {remedy}") from error


def _strings(texts: Iterable[Any]) -> Iterator[str]:
    for number, text in enumerate(texts):
        if isinstance(text, Mapping):
            known = ", ".join(f"'{key}'" for key in itertools.islice(text, 5))
            raise TemporalLensError(f"document {number} of the given texts is a row with the columns {known}; give one column's texts")
        if not isinstance(text, str):
            raise TemporalLensError(f"document {number} of the given texts is of type {type(text).__name__}, it should be a string")
        refuse_half_character(text, f"document {number} of the given texts")
        yield text


# Files and folders


class FolderContent(NamedTuple):
    """What of a folder is read as text, and what is not."""

    files: list[Path]  # in the order in which they are read
    left: Counter[str]  # of what there is that is left out

    @property
    def counted(self) -> str:
        kinds = Counter(path.suffix.lower() for path in self.files)
        return f"{len(self.files)} {'file' if len(self.files) == 1 else 'files'} read ({_listed(kinds)})"

    @property
    def left_out(self) -> str:
        return f"left out: {_listed(self.left) if self.left else 'nothing'}"


def _listed(kinds: Counter[str]) -> str:
    return ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))


def folder_content(folder: Path) -> FolderContent:
    """The texts of a folder and of the folders in it, without what is hidden and without links that lead out of it, or to folders.

    Raises TemporalLensError for a folder in it that may not be read.
    """
    files, left, home = [], Counter[str](), folder.resolve()
    with explained(folder):
        for parent, folders, names in os.walk(folder, onerror=_raise):
            for name in [*folders, *names]:
                path = Path(parent, name)
                if name.startswith("."):
                    left["hidden"] += 1
                elif path.is_symlink() and not (path.is_file() and path.resolve().is_relative_to(home)):
                    left["linked elsewhere"] += 1
                elif path.is_file() and path.suffix.lower() in ENDINGS:
                    files.append(path)
                elif not path.is_dir():
                    left[path.suffix or "without ending"] += 1
            folders[:] = [name for name in folders if not name.startswith(".")]
    return FolderContent(sorted(files), left)


def _raise(error: OSError) -> None:
    raise TemporalLensError(f"{error.filename} cannot be read: {error.strerror}") from error


def _of_files(name: str, files: list[Path], column: str | None, summary: str | None = None) -> Corpus:
    def read() -> Iterator[str]:
        for file in files:
            yield from _documents_in(file, column)

    # Names without their folders: they say how a file is read, and the order of the contents says the rest.
    return Corpus(name, "sha256:" + fingerprint([[file.name, _content(file)] for file in files]), read, summary)


def _content(path: Path) -> str:
    with explained(path):
        status = path.stat()
    return _sha256_of(path, status.st_size, status.st_mtime_ns)


@cache
def _sha256_of(path: Path, size: int, modified: int) -> str:
    """A study asks several times for what a file holds, and a text may be large; it is read again once it has changed."""
    return content_sha256(path)


def _documents_in(path: Path, column: str | None) -> Iterator[str]:
    """The documents of a table; a text file is one document."""
    if path.suffix.lower() not in TABLES:
        yield read_plain(path)
        return
    for where, row in read_rows(path, None if column is None else [column]):
        [(name, value)] = row.items()
        yield _cell(value, name, where)


def _cell(value: Any, column: str, where: str) -> str:
    """A missing value is an empty document; anything else than text is a mistake."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TemporalLensError(f"column '{column}' of {where} holds {type(value).__name__}, not text")
    return value


# Data sets of the hub


def _on_hub(text: str) -> re.Match[str] | None:
    """The parts of `owner/name:configuration@revision` where that is what `text` names: neither what is shipped nor what is here."""
    if text in shipped.TEXTS or not _may_be_a_path(text) or user_path(text).exists() or Path(text).suffix.lower() in ENDINGS:
        return None
    return HUB_NAME.fullmatch(text)


def is_on_hub(text: str) -> bool:
    """Whether reading `text` means asking the hub."""
    return _on_hub(text) is not None


def is_moving(text: str) -> bool:
    """Whether `text` names a hub data set without saying which commit of it."""
    hub = _on_hub(text)
    return hub is not None and not COMMIT.fullmatch(hub["revision"] or "")


def at_commit(text: str) -> str:
    """`text`, with the commit that it now has where it names a hub data set without one; as it is where the hub cannot be asked."""
    if not is_moving(text):
        return text
    from huggingface_hub import HfApi

    hub = HUB_NAME.fullmatch(text)
    assert hub is not None
    try:
        commit = HfApi().dataset_info(hub["path"], revision=hub["revision"], timeout=HUB_SECONDS).sha
    except (OSError, ValueError, HTTPError):  # reading it says what is wrong, if anything is
        return text
    return f"{text.partition('@')[0]}@{commit}" if commit else text


def _hub_documents(name: str, column: str | None, split: str | None) -> Iterator[str]:
    """Stream the data set `owner/name`, `owner/name:configuration`, `owner/name@revision` or both from the hub."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        remedy = "reading it as a hub data set needs the package datasets: pip install 'temporallens[hub]'"
        raise TemporalLensError(f"there is no file or folder {name}, and {remedy}") from error
    hub = HUB_NAME.fullmatch(name)
    assert hub is not None
    pinned = {} if hub["revision"] is None else {"revision": hub["revision"]}
    try:
        rows = load_dataset(hub["path"], hub["configuration"], split=split or "train", streaming=True, **pinned)
    except (OSError, ValueError, HTTPError) as error:
        raise TemporalLensError(f"there is no file or folder {name}, and the hub data set cannot be opened: {first_line(error)}") from error
    key: str | None = None
    try:
        for number, row in enumerate(rows):
            where = f"data set {name}, row {number}"
            key = text_column(list(row), column if key is None else key, where)
            value = _cell(row[key], key, where)
            refuse_half_character(value, where)
            yield value
    except (OSError, ValueError, RuntimeError, HTTPError) as error:
        raise TemporalLensError(f"the hub data set {name} cannot be read: {first_line(error)}") from error
