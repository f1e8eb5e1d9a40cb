"""Files of texts are read as they were meant, or refused with file and line: the same for corpora and labelled sets."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from temporallens.activations.language.corpora import documents, open_corpus
from temporallens.activations.language.readers import LARGEST_FIELD, allow_long_fields, read_rows
from temporallens.errors import TemporalLensError
from temporallens.evaluation.texts.labelled import LEAST_TEXTS, read_table
from temporallens.files import fingerprint, sha256

MARK = b"\xef\xbb\xbf"
LABELLED = "".join(f"{word} {number},{word}\n" for number in range(LEAST_TEXTS) for word in ("good", "bad"))


def refused(path: Path, column: str | None = None) -> str:
    """The sentence about a corpus, after the file's name."""
    with pytest.raises(TemporalLensError) as caught:
        list(documents(path, column))
    return str(caught.value).replace(f"{path.parent}/", "")


# Marks and encodings


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", b"one two"),
        ("a.md", b"one two"),
        ("a.csv", b"text,n\none two,1\n"),
        ("q.csv", b'"text","n"\r\n"one two","1"\r\n'),
        ("a.jsonl", b'{"text": "one two"}\n'),
    ],
)
@pytest.mark.parametrize("marks", [1, 2])
def test_a_byte_order_mark_is_no_part_of_the_text(name: str, content: bytes, marks: int, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(MARK * marks + content)
    assert list(documents(tmp_path / name)) == ["one two"]


def test_plain_text_has_the_fingerprint_of_what_is_read_of_it(tmp_path: Path) -> None:
    """A store that was harvested with a mark in its first document is not taken for this text."""
    (tmp_path / "a.txt").write_bytes(b"one two")
    plain = open_corpus(tmp_path / "a.txt").fingerprint
    (tmp_path / "a.txt").write_bytes(MARK + b"one two")
    assert open_corpus(tmp_path / "a.txt").fingerprint == plain
    (tmp_path / "a.csv").write_bytes(b"n,text\n1,one two\n")
    table = open_corpus(tmp_path / "a.csv").fingerprint
    (tmp_path / "a.csv").write_bytes(MARK + b"n,text\n1,one two\n")  # was read rightly with its mark; its stores stay what they are
    assert open_corpus(tmp_path / "a.csv").fingerprint != table


def test_marks_where_files_were_joined_are_no_part_of_json_lines(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "one"}\n' + MARK + b"\n" + MARK + b'{"text": "two"}\n')
    assert list(documents(tmp_path / "a.jsonl")) == ["one", "two"]


def test_marks_where_files_were_joined_are_no_part_of_plain_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\ntwo\nthree")
    clean = open_corpus(tmp_path / "a.txt").fingerprint
    (tmp_path / "a.txt").write_bytes(MARK + b"one\n" + MARK + b"two\n" + MARK + b"three")
    assert list(documents(tmp_path / "a.txt")) == ["one\ntwo\nthree"]
    assert open_corpus(tmp_path / "a.txt").fingerprint == clean


def test_joined_tables_have_one_header(tmp_path: Path) -> None:
    """A store that was harvested with the second header as a document is not taken for this text."""
    table = MARK + b'n,text\r\n1,"one\r\n%b"\r\n' % MARK
    (tmp_path / "a.csv").write_bytes(table + b"\r\n" + table)
    assert list(documents(tmp_path / "a.csv")) == ["one\r\n\ufeff"] * 2
    assert open_corpus(tmp_path / "a.csv").fingerprint != "sha256:" + fingerprint([["a.csv", sha256(tmp_path / "a.csv")]])


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.csv", b"n,text\n1,a\n%btext,n\nb,2\n", "line 3 begins with a byte-order mark, and is not the header again; remove the mark"),
        ("a.csv", b"n,text\n1,a\n%b2,b\n", "line 3 begins with a byte-order mark, and is not the header again; remove the mark"),
        ("a.csv", b"n,text\n1,a%bn,text\n2,b\n", "line 2 has 3 fields where the header has 2"),
        ("a.csv", b"text\na%btext\nb\n", "line 2 ends in a byte-order mark and the header of another file; put a line break there"),
        ("a.jsonl", b'{"text": "a"}%b{"text": "b"}\n', "line 1 is not JSON: Extra data"),
    ],
)
def test_marks_that_leave_something_open_are_refused(name: str, content: bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content.replace(b"%b", MARK))
    assert refused(tmp_path / name).startswith(f"{name}, {sentence}")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
@pytest.mark.parametrize(("name", "text"), [("a.txt", "one"), ("a.csv", "text\none\n"), ("a.jsonl", '{"text": "one"}\n')])
def test_another_encoding_is_named(name: str, text: str, encoding: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(text.encode(encoding))
    assert refused(tmp_path / name) == f"{name} is {encoding.upper()} text; convert it to UTF-8"
    (tmp_path / name).write_bytes(text.encode(f"{encoding}-le"))  # the same without a mark
    assert refused(tmp_path / name).startswith(f"{name}, line 1 holds a NUL character: it is UTF-16, or no text")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", b"one\ntwo caf\xe9\n"),
        ("a.csv", b"text\ncaf\xe9\n"),
        ("cr.csv", b"text\rcaf\xe9\r"),
        ("a.jsonl", b'{"text": "one"}\n{"text": "caf\xe9"}\n'),
    ],
)
def test_bytes_that_are_not_utf8_are_named_by_line(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert refused(tmp_path / name).startswith(f"{name}, line 2 is not UTF-8 text: ")


def test_bytes_that_are_not_utf8_are_named_by_row_of_parquet(tmp_path: Path) -> None:
    offsets, content = pyarrow.py_buffer(b"\0\0\0\0\2\0\0\0\5\0\0\0"), pyarrow.py_buffer(b"okc\xe9x")
    column = pyarrow.Array.from_buffers(pyarrow.string(), 2, [None, offsets, content])
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    assert refused(tmp_path / "a.parquet").startswith("a.parquet, row 1 is not UTF-8 text: ")


@pytest.mark.parametrize(("start", "word"), [(b"\x1f\x8b\x08\0", "gzip"), (b"PK\x03\x04", "zip"), (b"\x28\xb5\x2f\xfd", "zstd")])
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt"])
def test_compressed_files_are_named(name: str, start: bytes, word: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(start + b"\0\xff rest")
    assert refused(tmp_path / name).startswith(f"{name} is compressed ({word}")


# CSV


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('text,n\n"unclosed a,1\nb,2\nc,3\n', "line 2 is not CSV: a quote that opens in it is never closed"),
        ('text,n\n"a\nb",1\n"c,2\n', "line 4 is not CSV: a quote that opens in it is never closed"),
        ('"text,n\na,1\n', "line 1 is not CSV: a quote that opens in it is never closed"),
        ('text,n\n"a "b" c",1\n', "line 2 is not CSV: "),
        ('n,text\n1, "a "b" c"\n', "line 2 is not CSV: "),
        ('n,text\n1, "a" , 2\n', "line 2 is not CSV: "),
        ('n,text\n1, "unclosed\n2, b\n', "line 2 is not CSV: a quote that opens in it is never closed"),
        ('text,n\n"he \\"said\\" so",1\n', "line 2 is not CSV: "),
        ("id,text\n1,hello, world\n", "line 2 has 3 fields where the header has 2; a text that holds commas"),
        ("id,text\n1,a\n\n2\n", "line 4 has 1 field where the header has 2"),
        ("id,text\n1,a,\n", "line 2 has 3 fields where the header has 2"),
        ("text\nhello, world\n", "line 2 has 2 fields where the header has 1"),
        ("text,text\na,b\n", "has two columns called 'text'; rename one"),
        ("text,n\na\0b,1\n", "line 2 holds a NUL character"),
    ],
)
def test_malformed_csv_is_refused_by_line(content: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(content, newline="")
    assert sentence in refused(tmp_path / "a.csv")


@pytest.mark.parametrize(("delimiter", "name"), [(";", "semicolons"), ("\t", "tabs"), ("|", "bars")])
@pytest.mark.parametrize("header", ["id{}text", "text{}id", '"id"{}"text"', "id{}text{}n, more"])
def test_another_delimiter_is_named(header: str, delimiter: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(header.replace("{}", delimiter) + f"\n1{delimiter}hello\n")
    assert refused(tmp_path / "a.csv") == f"a.csv is divided by {name}; write it with commas between the columns"


@pytest.mark.parametrize("delimiter", [";", ","])
def test_what_only_spreadsheets_read_is_named(delimiter: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"sep={delimiter}\nid{delimiter}text\n1{delimiter}hello\n")
    assert refused(tmp_path / "a.csv").startswith(f"a.csv begins with 'sep={delimiter}', which only spreadsheets read; remove that line")


def test_a_column_without_a_header_loses_no_document(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"the first document {'x' * 300}\nthe second\n")
    sentence = refused(tmp_path / "a.csv")
    assert "has one column and 'the first document xxx" in sentence and "put the line 'text' before it" in sentence and len(sentence) < 240
    (tmp_path / "a.csv").write_text("body\none\ntwo\n")
    assert "if that is the column's name, say so (column: ...)" in refused(tmp_path / "a.csv")
    assert list(documents(tmp_path / "a.csv", column="body")) == ["one", "two"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("text,n\ra,1\rb,2\r", ["a", "b"]),
        ("text,n\r\na,1\nb,2\r", ["a", "b"]),
        ('text,n\n"a\nb\r\nc",1\nd,2', ["a\nb\r\nc", "d"]),
        ("\n\ntext\n\na\n\n\nb\n", ["a", "b"]),
        ("text,n,\na,1,\n", ["a"]),
        ("text,x,x\na,1,2\n", ["a"]),
        ('text,n\n"say ""so""",1\n5" pipe,2\n', ['say "so"', '5" pipe']),
        ('n, "text"\n1, "one, two"\n2,\t"say ""so"", or"\n', ["one, two", 'say "so", or']),
        ('n,text\n1, """so"" it is"\n2, ", x"\n3, z\n', ['"so" it is', ", x", " z"]),
        (' "text",n\n "a\n ""b"", ""\nc", 1\n', ['a\n "b", "\nc']),
        ('n,text\n1," ""a"""\n2,"a, ""b"" "\n', [' "a"', 'a, "b" ']),
    ],
)
def test_what_csv_leaves_open_is_read(content: str, expected: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(content, newline="")
    assert list(documents(tmp_path / "a.csv")) == expected


def test_a_row_is_named_by_the_line_in_which_it_begins(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,n\n"a\nb",1\nc,2\n')
    assert [place.rpartition(", ")[2] for place, _ in read_rows(tmp_path / "a.csv", ["text"])] == ["line 2", "line 4"]


def test_long_fields_are_read_and_the_limit_of_the_process_is_never_lowered(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"text,n\n{'x' * 300_000},1\n")
    before = csv.field_size_limit(10)
    try:
        assert [len(text) for text in documents(tmp_path / "a.csv")] == [300_000]
        csv.field_size_limit(LARGEST_FIELD + 1)
        allow_long_fields()
        assert csv.field_size_limit() == LARGEST_FIELD + 1
    finally:
        csv.field_size_limit(before)


@pytest.mark.parametrize("content", ["", "\n\n", "\ufeff"])
def test_an_empty_table_is_called_so(content: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(content, "utf-8")
    assert refused(tmp_path / "a.csv") == "a.csv is empty: it has no column 'text'"
    (tmp_path / "b.csv").write_text("text\n")
    assert "holds no words: there is no document in it" in refused(tmp_path / "b.csv")


# JSON lines


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"text": "a", "x": ' + "[" * 100_000 + "]" * 100_000 + "}", "line 1 is not readable as JSON: it is nested too deep"),
        ("[" * 100_000, "line 1 is not readable as JSON: it is nested too deep"),
        ('{"text": "a"}\n{"text": "b", "text": "c"}', "line 2 is not readable as JSON: the name 'text' stands twice in an object"),
        ('{"text": "a", "n": ' + "1" * 5000 + "}", "line 1 is not readable as JSON: Exceeds the limit (4300 digits)"),
        ('[\n{"text": "a"},\n{"text": "b"}\n]', "line 1 is not JSON: "),
        ('[{"text": "a"}]', "line 1 is not a JSON object: write one in each line"),
        ('{\n "text": "a"\n}', "write one object in each line"),
        ('{"text": "a"}{"text": "b"}', "line 1 is not JSON: Extra data (character 14)"),
        ("{'text': 'a'}", "line 1 is not JSON: "),
        ('{"text": "a"}\n{"text": NaN}', "line 2 holds float, not text"),
        ('{"text": "a"}\n{"text": {"b": "c"}}', "line 2 holds dict, not text"),
        ('{"text": "a"}\n\0\0\0', "line 2 holds a NUL character"),
        ('{"title": "a"}\n{"title": "b", "text": "c"}', "line 2 has more columns than 'title', the only one before"),
        ("{}", "line 1 has no column 'text'"),
    ],
)
def test_malformed_json_lines_are_refused_by_line(content: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    assert sentence in refused(tmp_path / "a.jsonl")


def test_what_stands_beside_the_text_may_be_anything(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"text": "a", "n": NaN, "\\ud800": "\\udfff"}\r{"text": "\\ud83d\\ude00", "m": [{"k": 1}, {"k": 2}]}\r\n'
    )
    assert list(documents(tmp_path / "a.jsonl")) == ["a", "😀"]


@pytest.mark.parametrize("escape", ["\\ud800", "\\udc80", "\\udcff\\ud800"])
def test_half_of_a_character_is_named_by_file_line_and_column(escape: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"text": "ok"}}\n{{"text": "a{escape}b"}}\n')
    assert refused(tmp_path / "a.jsonl").startswith(f"a.jsonl, line 2: 'text' holds half of a character, the lone surrogate {escape[:6]}; ")


def test_half_characters_in_names_can_be_printed(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"\\ud800": 1, "b": 2}\n')
    assert refused(tmp_path / "a.jsonl").encode().endswith(rb"it is one of: b, \ud800")


# Parquet


@pytest.mark.parametrize("make", [pyarrow.string, pyarrow.large_string, pyarrow.string_view])
def test_strings_of_parquet_are_read_in_every_layout(make: Callable[[], pyarrow.DataType], tmp_path: Path) -> None:
    column = pyarrow.array(["a", None, "b", "a"], make())
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    assert list(documents(tmp_path / "a.parquet")) == ["a", "b", "a"]
    pyarrow.parquet.write_table(pyarrow.table({"body": pyarrow.array(["a", "b", "a"]).dictionary_encode()}), tmp_path / "b.parquet")
    assert list(documents(tmp_path / "b.parquet")) == ["a", "b", "a"]


@pytest.mark.parametrize(("value", "kind"), [(["a"], "list"), (b"a", "bytes"), (1, "int"), ({"x": "a"}, "dict")])
def test_other_columns_of_parquet_are_refused_by_row(value: object, kind: str, tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"text": [None, value]}), tmp_path / "a.parquet")
    assert refused(tmp_path / "a.parquet") == f"column 'text' of a.parquet, row 1 holds {kind}, not text"


def test_broken_and_empty_parquet(tmp_path: Path) -> None:
    two = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"])
    pyarrow.parquet.write_table(two, tmp_path / "two.parquet")
    assert refused(tmp_path / "two.parquet") == "two.parquet has two columns called 'text'; rename one of them"
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), tmp_path / "none.parquet")
    assert "holds no words: there is no document in it" in refused(tmp_path / "none.parquet")
    content = (tmp_path / "two.parquet").read_bytes()
    for size in (0, 10, len(content) // 2, len(content) - 4):
        (tmp_path / "cut.parquet").write_bytes(content[:size])
        assert "cut.parquet is not readable as Parquet: " in refused(tmp_path / "cut.parquet")


# Labelled sets are read by the same readers


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.csv", 'text,label\n"unclosed a,x\nb,y\n', "line 2 is not CSV: a quote that opens in it is never closed"),
        ("a.csv", "text,label\nhello, world,x\n", "line 2 has 3 fields where the header has 2"),
        ("a.csv", "text;label\nhello;x\n", "is divided by semicolons"),
        ("a.csv", "hello,x\nworld,y\n", "has no column 'text'"),
        ("a.csv", "text,text,label\na,b,x\n", "has two columns called 'text'"),
        ("a.jsonl", '{"text": "a", "label": "x", "label": "y"}\n', "line 1 is not readable as JSON: the name 'label' stands twice"),
        ("a.jsonl", '{"text": "a\\ud800", "label": "x"}\n', r"line 1: 'text' holds half of a character, the lone surrogate \ud800"),
        ("a.jsonl", '{"text": "a", "label": Infinity}\n', "line 1: 'label' holds no label"),
        (
            "a.jsonl",
            '{"text": "a", "label": "x"}\n{"text": "b", "x": ' + "[" * 100_000,
            "line 2 is not readable as JSON: it is nested too deep",
        ),
    ],
)
def test_labelled_tables_are_as_strict(name: str, content: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(TemporalLensError) as caught:
        read_table(tmp_path / name)
    assert f"{tmp_path / name}" in str(caught.value) and sentence in str(caught.value)


def test_labelled_tables_have_no_marks_either(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(MARK * 2 + b"text,label\n" + LABELLED.encode())
    rows = [dict(zip(("text", "label"), line.split(","), strict=True)) for line in LABELLED.splitlines()]
    (tmp_path / "b.jsonl").write_bytes(MARK + "".join(json.dumps(row) + "\n" for row in rows).encode())
    assert read_table(tmp_path / "a.csv").texts == read_table(tmp_path / "b.jsonl").texts == [row["text"] for row in rows]


# What the system refuses


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl", "a.parquet"])
def test_a_file_that_may_not_be_read_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / name).write_text("text\none\n")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    assert refused(tmp_path / name) == f"{name} cannot be read: Permission denied"
