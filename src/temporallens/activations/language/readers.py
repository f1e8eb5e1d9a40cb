"""Files of texts, read strictly: plain text, and tables (CSV, JSON lines, Parquet) row by row, each row with the place where it stands.

Corpora and labelled sets are both built on these readers. Text is UTF-8; byte-order marks are dropped, at its start and where
files were joined. A file that would be read as something else than its writer meant is refused, with file and line: an unclosed quote, a
row of more or fewer fields than the header, another delimiter, a missing header, a name that stands twice, half of a character. Memory
holds a row, of Parquet a batch of them.
"""

import codecs
import csv
import hashlib
import json
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from temporallens.errors import TemporalLensError, did_you_mean, first_line

Row = dict[str, Any]
"""Values of the wanted columns, under their names."""

MARK = "\ufeff"
"""What editors on Windows write before the first character of a file."""
ENCODINGS = {
    codecs.BOM_UTF32_LE: "UTF-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
PACKED = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip, as spreadsheets are",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}
"""First bytes of files that are no text, whatever their names say."""

BLANK_BEFORE_QUOTE = re.compile(r'(?:^|,)[ \t]+"')
FIELD = re.compile(r'([ \t]+(?="))?((?:"[^"]*+(?:""[^"]*+)*+"?)?[^,]*+(?:,|\Z))')
"""A field of CSV with the comma behind it, and the blanks before its quotes apart."""
DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "bars"}
"""What files called .csv are divided by when they are not divided by commas."""
LARGEST_FIELD = (1 << 31) - 1
"""Characters of a field of CSV: as many as the module can be told on every system. By itself it allows 128 KiB."""
PARQUET_ROWS = 1024
SHOWN = 60
"""Characters of a column's name that a message shows: where a header is missing, it is a document."""


def read_rows(path: Path, wanted: Sequence[str] | None) -> Iterator[tuple[str, Row]]:
    """The rows of a table with their places, and in them the `wanted` columns; None: the one column that holds the text (`text_column`).

    Raises TemporalLensError, naming file and line, for whatever is not a table of its kind or does not have these columns.
    """
    with explained(path):
        yield from TABLES[path.suffix.lower()](path, wanted)


def read_plain(path: Path) -> str:
    """The whole of a text file, without marks. Raises TemporalLensError where it is none, or cannot be read."""
    with explained(path):
        return "".join(_lines(path)).replace(MARK, "")


def content_sha256(path: Path) -> str:
    """Of what is read of a file, as 64 hex digits: marks do not count, but for that at the start of a table, which always did."""
    digest = hashlib.sha256()
    with explained(path), path.open("rb") as file:
        if path.suffix.lower() == ".parquet":
            return hashlib.file_digest(file, "sha256").hexdigest()
        if path.suffix.lower() in TABLES:
            digest.update(file.readline())
        for line in file:
            digest.update(line.replace(codecs.BOM_UTF8, b""))
    return digest.hexdigest()


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to read `path` into a sentence."""
    try:
        yield
    except OSError as error:
        raise TemporalLensError(f"{path} cannot be read: {error.strerror or first_line(error)}") from error


def text_column(columns: Sequence[str], wanted: str | None, where: str) -> str:
    """The column that holds the text: `wanted`, or else `text`, or else the only one.

    Raises TemporalLensError, naming the nearest one, when it is not there or not clear.
    """
    if wanted is None and "text" not in columns and len(columns) == 1:
        return columns[0]
    if wanted is None and "text" not in columns and columns:
        known = did_you_mean("text", map(_short, columns))
        raise TemporalLensError(f"{where} has no column 'text'; name the one that holds the text (column: ...){known}")
    check_columns(columns, ["text" if wanted is None else wanted], where)
    return "text" if wanted is None else wanted


def check_columns(columns: Sequence[str], wanted: Iterable[str], where: str) -> None:
    """Raise TemporalLensError for a wanted column that is not there, or is there twice."""
    for column in wanted:
        if column not in columns:
            raise TemporalLensError(f"{where} has no column '{column}'{did_you_mean(column, map(_short, columns))}")
        if list(columns).count(column) > 1:
            raise TemporalLensError(f"{where} has two columns called '{column}'; rename one of them")


def half_character(text: str) -> str | None:
    """The first lone surrogate in `text`, as it is escaped: half of a character, which no file in UTF-8 and no tokenizer can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"\\u{ord(text[error.start]):04x}"
    return None


def refuse_half_character(text: str, where: str) -> None:
    """Raise TemporalLensError for a lone surrogate."""
    if (half := half_character(text)) is not None:
        raise TemporalLensError(f"{where} holds half of a character, the lone surrogate {half}; mend the text, or leave it out")


def allow_long_fields() -> None:
    """Let the csv module read fields of any length; the limit is one for the whole process, and is never lowered here."""
    csv.field_size_limit(max(csv.field_size_limit(), LARGEST_FIELD))


def _columns(columns: Sequence[str], wanted: Sequence[str] | None, where: str) -> Sequence[str]:
    if wanted is None:
        return [text_column(columns, None, where)]
    check_columns(columns, wanted, where)
    return wanted


def _short(name: str) -> str:
    return name if len(name) <= SHOWN else name[: SHOWN - 3] + "..."


def _lines(path: Path, newline: str | None = None) -> Generator[str]:
    """Lines of a file in UTF-8, without the marks at its start; `newline` as in `open`."""
    _refuse_other_formats(path)
    with path.open(encoding="utf-8", newline=newline) as file:
        try:
            for number, line in enumerate(file, start=1):
                if "\0" in line:
                    raise TemporalLensError(f"{path}, line {number} holds a NUL character: it is UTF-16, or no text; write it in UTF-8")
                yield line if number > 1 else line.lstrip(MARK)
        except UnicodeDecodeError as error:
            raise TemporalLensError(f"{_undecodable(path)} is not UTF-8 text: {error.reason}; convert it to UTF-8") from error


def _refuse_other_formats(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(8)
    for mark, encoding in ENCODINGS.items():
        if start.startswith(mark):
            raise TemporalLensError(f"{path} is {encoding} text; convert it to UTF-8")
    for mark, packing in PACKED.items():
        if start.startswith(mark):
            raise TemporalLensError(f"{path} is compressed ({packing}); unpack it first, or save it as text")


def _undecodable(path: Path) -> str:
    """The line in which a file stops being UTF-8."""
    lines = 0
    with path.open("rb") as file:
        for line in file:
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return f"{path}, line {lines + len((line[: error.start] + b'.').splitlines())}"
            lines += len(line.splitlines())  # a line ends in CR, too
    return str(path)


def _comma_separated(path: Path, wanted: Sequence[str] | None) -> Iterator[tuple[str, Row]]:
    with closing(_lines(path, newline="")) as lines:
        _check_first_line(next((line for line in lines if line.strip()), "").strip("\r\n"), wanted, path)
    records = _records(path)
    _, header = next(records)
    if wanted is None and len(header) == 1 and header != ["text"]:
        raise TemporalLensError(
            f"{path} has one column and '{_short(header[0])}' in its first line: if that is the column's name, say so "
            f"(column: ...), else put the line 'text' before it"
        )
    columns = _columns(header, wanted, str(path))
    index_of = {column: header.index(column) for column in columns}
    for line, fields in records:
        if len(fields) != len(header):
            count = f"{len(fields)} {'field' if len(fields) == 1 else 'fields'} where the header has {len(header)}"
            raise TemporalLensError(f"{path}, line {line} has {count}; a text that holds commas or line breaks stands in quotes")
        if len(header) == 1 and fields[0].endswith(MARK + header[0]):
            raise TemporalLensError(f"{path}, line {line} ends in a byte-order mark and the header of another file; put a line break there")
        yield f"{path}, line {line}", {column: fields[index] for column, index in index_of.items()}


def _records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not blank, header first, each with the line in which it begins. Where tables were joined the header counts once."""
    allow_long_fields()
    source, header, line = _CsvLines(path), list[str](), 1
    reader = csv.reader(source, strict=True)
    try:
        for fields in reader:
            joined = source.marked and header and fields
            if joined and fields != header:
                raise TemporalLensError(f"{path}, line {line} begins with a byte-order mark, and is not the header again; remove the mark")
            if fields and not joined:
                yield line, fields
            header = header or fields
            line = reader.line_num + 1
            source.next_record(blank=not fields)
    except csv.Error as error:
        reason = "a quote that opens in it is never closed" if "unexpected end" in str(error) else str(error)
        raise TemporalLensError(f"{path}, line {line} is not CSV: {reason}") from error


class _CsvLines:
    """Lines of a table as the csv module takes them: it keeps marks, and takes a quote behind a blank for a part of the text."""

    def __init__(self, path: Path) -> None:
        self._lines = _lines(path, newline="")
        self._within = False  # whether the next line goes on with a record, in quotes
        self.marked = False  # whether the record, or a blank line before it, begins with a mark

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            opening, whole = ('"', line) if self._within else ("", line.lstrip(MARK))
            self.marked |= len(whole) < len(line)
            self._within = True
            yield FIELD.sub(r"\2", opening + whole)[len(opening) :] if BLANK_BEFORE_QUOTE.search(whole) else whole

    def next_record(self, *, blank: bool) -> None:
        self._within = False
        self.marked &= blank


def _check_first_line(line: str, wanted: Sequence[str] | None, path: Path) -> None:
    """Raise TemporalLensError where a file is empty, or divided by something else than commas."""
    if not line:
        check_columns([], wanted or ["text"], f"{path} is empty: it")
    if line.lower().startswith("sep=") and len(line) <= len("sep=,,"):
        raise TemporalLensError(f"{path} begins with '{line}', which only spreadsheets read; remove that line, and divide by commas")
    looked_for = set(wanted or ["text"])
    for delimiter, name in DELIMITERS.items():
        if not looked_for <= _parts(line, ",") and looked_for <= _parts(line, delimiter):
            raise TemporalLensError(f"{path} is divided by {name}; write it with commas between the columns")


def _parts(line: str, delimiter: str) -> set[str]:
    return {part.strip(' "') for part in line.split(delimiter)}


def _json_lines(path: Path, wanted: Sequence[str] | None) -> Iterator[tuple[str, Row]]:
    columns = wanted
    for number, line in enumerate((line.lstrip(MARK) for line in _lines(path)), start=1):  # joined files have marks in the middle
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        record = _json_object(line, where)
        columns = _columns(list(record), wanted or columns, where)
        if wanted is None and columns != ["text"] and len(record) > 1:
            raise TemporalLensError(f"{where} has more columns than '{columns[0]}', the only one before; name one (column: ...)")
        for column in columns:
            if isinstance(record[column], str):
                refuse_half_character(record[column], f"{where}: '{column}'")
        yield where, {column: record[column] for column in columns}


def _json_object(line: str, where: str) -> Row:
    try:
        record = json.loads(line, object_pairs_hook=_distinct)
    except json.JSONDecodeError as error:
        raise TemporalLensError(f"{where} is not JSON: {error.msg} (character {error.pos + 1}); write one object in each line") from error
    except RecursionError as error:
        raise TemporalLensError(f"{where} is not readable as JSON: it is nested too deep") from error
    except ValueError as error:  # a name that stands twice, or Python's limit of digits, with advice behind a colon
        raise TemporalLensError(f"{where} is not readable as JSON: {str(error).partition(':')[0]}") from error
    if not isinstance(record, dict):
        raise TemporalLensError(f"{where} is not a JSON object: write one in each line, with what belongs to a text under names")
    return record


def _distinct(pairs: list[tuple[str, Any]]) -> Row:
    """JSON readers keep the last of two equal names and say nothing."""
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name '{next(name for name in names if names.count(name) > 1)}' stands twice in an object")
    return record


def _parquet(path: Path, wanted: Sequence[str] | None) -> Iterator[tuple[str, Row]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise TemporalLensError(f"reading {path} needs the package pyarrow: pip install 'temporallens[parquet]'") from error
    with path.open("rb") as source:  # what the system refuses is said as of every file; what pyarrow cannot read is not Parquet
        try:
            with pyarrow.parquet.ParquetFile(source) as file:
                columns = _columns(file.schema_arrow.names, wanted, str(path))
                number = 0
                for batch in file.iter_batches(PARQUET_ROWS, columns=list(columns)):
                    for row in _decoded(batch, number, path):
                        yield f"{path}, row {number}", {column: row[column] for column in columns}
                        number += 1
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise TemporalLensError(f"{path} is not readable as Parquet: {first_line(error)}") from error


def _decoded(batch: Any, number: int, path: Path) -> list[Row]:
    """The rows of a batch, the first of them row `number` of the file."""
    try:
        return list(batch.to_pylist())
    except UnicodeDecodeError as error:
        row = next(row for row in range(batch.num_rows) if not _is_decodable(batch.slice(row, 1)))
        raise TemporalLensError(f"{path}, row {number + row} is not UTF-8 text: {error.reason}; convert it to UTF-8") from error


def _is_decodable(batch: Any) -> bool:
    try:
        batch.to_pylist()
    except UnicodeDecodeError:
        return False
    return True


TABLES: dict[str, Callable[[Path, Sequence[str] | None], Iterator[tuple[str, Row]]]] = {
    ".csv": _comma_separated,
    ".jsonl": _json_lines,
    ".parquet": _parquet,
}
"""Readers by the ending of a file's name."""
