"""What is shown of work that goes on."""

import pytest

from temporallens import progress as module
from temporallens.progress import progress


def test_a_file_gets_a_plain_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    clock = iter([0.0, 10.0, 31.0, 31.0, 40.0, 62.0, 62.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with progress("training", 1000, "tokens") as advance:
        advance(10, "FVE 0.5")
        assert capsys.readouterr().err == ""
        advance(300)
        assert capsys.readouterr().err == "training: 31% of 1,000 tokens, 10 tokens/s, 1 min left, FVE 0.5\n"
        advance(31)
        advance(31, "FVE 0.6")
    assert capsys.readouterr().err == "training: 37% of 1,000 tokens, 2 tokens/s, 5 min left, FVE 0.6\n"


def test_of_several_processes_one_shows_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(module, "speaks", lambda: False)
    monkeypatch.setattr(module, "EVERY", 0.0)
    with progress("training", None, "tokens") as advance:
        advance(10)
    module.note("a word")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(module, "speaks", lambda: True)
    with progress("reading", None, "tokens") as advance:
        advance(10)
    assert capsys.readouterr().err.startswith("reading: 10 tokens, ")
