"""A dictionary that another library trains: what is done on our side, without that library."""

from pathlib import Path

import pytest

from benchmarks import foreign


def test_no_document_is_both_learnt_and_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speeches = [f"Speech {number}." for number in range(5)]
    monkeypatch.setattr(foreign, "open_corpus", lambda name: speeches if name == "sotu" else [])
    foreign.write_texts({"learn": tmp_path / "learn", "judge": tmp_path / "judge"})
    read = [[path.read_text() for path in sorted((tmp_path / name).iterdir())] for name in ("learn", "judge")]
    assert read == [speeches[::2], speeches[1::2]]


def test_without_the_library_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "ENVIRONMENT", tmp_path)
    with pytest.raises(SystemExit, match="not installed here; run make peers"):
        foreign.main(["--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
