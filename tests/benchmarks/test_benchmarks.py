"""Benchmarks: at tiny sizes every ratio is there under its key, and the page holds what was measured."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.__main__ import main
from benchmarks.peers import LIBRARIES, NOT_INSTALLED, PeerError, Worker
from benchmarks.report import write_docs
from benchmarks.scaling import exponent
from benchmarks.timing import Section, Settings, Sizes, Times, interleaved

from benchmarks import peers, scale
from tiny_models import TEXTS, tiny_model
from tiny_studies import documents

BATCHTOPK = ["vs_dense_matmuls", "vs_dense_reference", "vs_encoder_product", *(f"vs_{library}" for library in LIBRARIES)]
KEYS = {
    *(f"train_step.batchtopk.{key}" for key in BATCHTOPK),
    *(f"train_step.batchtopk.float32.{key}" for key in BATCHTOPK),
    "train_step.positional.vs_batchtopk",
    "openness_0.25.train_step",
    "openness_0.25.encode",
    "expectation.tokens.train_step_time",
    "expectation.tokens.encode_time",
    "expectation.row_before.encode_time",
    "expectation.past.encode_time",
    "harvest.vs_bare_forward",
    "peak_memory_ratio",
    "peak_memory_ratio.float32",
    "scale.training_shared_by_two_processes",
    "scale.training_shared_in_large_batches",
    "scale.training_dealt_to_two_processes",
    "scale.harvest_two_processes",
    "scale.stream_vs_slower",
    *(f"scaling.{name}" for name in ("features", "k", "width", "batch", "openness")),
}


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Tiny ones, and no environment of peers, whether or not this machine has one."""
    monkeypatch.setattr(peers, "ENVIRONMENT", tmp_path / "none")
    model = tiny_model("llama", tmp_path / "model")
    text = tmp_path / "text.jsonl"
    text.write_text("\n".join(json.dumps({"text": line}) for line in TEXTS))
    sizes = Sizes(width=16, features=64, k=4, batch=64, positions=16)
    return Settings(sizes, turn_seconds=0.001, model=str(model), layer=1, text=str(text), context_length=16, tokens=200)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_processes_and_streams_are_timed(settings: Settings, tmp_path: Path) -> None:
    text = tmp_path / "long.jsonl"
    text.write_text(documents(60))
    settings = replace(settings, text=str(text), tokens=1500)
    assert scale.found(settings, "train", 2)["gloo"] > 0
    assert scale.found(settings, "train_large", 1)["tokens"] == scale.LARGER * settings.sizes.batch
    assert scale.found(settings, "harvest", 2)["tokens"] > 1000
    streamed = scale.found(settings, "stream", 1)  # which refuses other bits
    assert min(streamed.values()) > 0 and streamed["tokens"] > 1000


def pretended(settings: Settings, work: str, count: int) -> dict[str, float]:
    """What `scale` would measure: starting processes takes longer than all the rest."""
    found = {"seconds": 1 / count, "reading": 0.5, "learning": 0.9, "tokens": 64, "moments": 8e6 / count}
    return found | ({"gloo": 1e9} if count > 1 else {})


@pytest.mark.slow
@pytest.mark.parametrize("native", [True, False], ids=["bfloat16", "without_bfloat16"])
def test_one_command_measures_every_ratio_and_writes_the_page(
    settings: Settings, tmp_path: Path, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("temporallens.precision.has_bfloat16", lambda device: native)
    monkeypatch.setattr(scale, "found", pretended)
    keys = {key for key in KEYS if native or ".float32" not in key}  # what `auto` gives is float32 where there is no bfloat16
    docs = tmp_path / "docs"
    docs.mkdir()
    command = ["--rounds", "2", "--device", "cpu", "--json", str(tmp_path / "found.json"), "--write-docs", "--docs", str(docs)]
    main(command, settings)
    found = json.loads((tmp_path / "found.json").read_text())
    details = found.pop("details")
    assert found.keys() == keys
    missing = {key for key, value in found.items() if value is None}
    assert missing == {key for key in keys for library in LIBRARIES if key.endswith(f"vs_{library}")}
    assert all(math.isfinite(value) for key, value in found.items() if key not in missing)
    assert all(value > 0 for key, value in found.items() if key not in missing and not key.startswith(("scaling.", "peak_memory")))
    assert details["settings"]["rounds"] == 2 and details["torch"]
    measured = {scale.GLOO: "1.00 GB/s", scale.MOMENTS: "8.0 MB and 4.0 MB"}
    assert details["notes"] == dict.fromkeys(LIBRARIES.values(), NOT_INSTALLED) | measured
    assert (found["scale.harvest_two_processes"], found["scale.stream_vs_slower"]) == (2, 0.9)
    assert all(len(seconds) == 2 for times in details["seconds"].values() for seconds in times.values())
    page = (docs / "performance.md").read_text()
    assert all(f"`{key}`" in page for key in keys) and NOT_INSTALLED in page
    assert (docs / "performance.png").stat().st_size > 10_000


def test_measuring_again_replaces_the_block_and_keeps_what_was_written_by_hand(tmp_path: Path) -> None:
    times, curve = {"ours": [0.1], "encode, openness 1": [0.1]}, [(4608.0, 1.0), (9216.0, 2.0)]
    sections = [Section(name, {"key": 1.25}, times, dict.fromkeys(times, 1)) for name in ("training_step", "openness")]
    sections.append(Section("scaling", {"scaling.features": 1.0}, curves={"features": curve}))
    write_docs(sections, Settings(), tmp_path)
    page = tmp_path / "performance.md"
    page.write_text("By hand.\n\n" + page.read_text().replace("1.25", "7.77"))
    write_docs(sections, Settings(), tmp_path)
    text = page.read_text()
    assert text.startswith("By hand.") and "1.25" in text and "7.77" not in text
    assert text.count("<!-- measured: cpu -->") == 1 and text.count("## How it is measured") == 1


def test_turns_alternate_and_ratios_are_taken_within_rounds() -> None:
    order: list[str] = []
    turns = {name: lambda repeats, name=name: order.append(name) or 1.0 for name in "ab"}
    interleaved(turns, 2, 0.1)
    assert order[-4:] == ["a", "b", "b", "a"]
    times = Times({"ours": [1.0, 4.0, 1.0], "theirs": [2.0, 8.0, 100.0]})
    assert times.speed_ratio("ours", "theirs") == 2 and times.time_ratio("ours", "theirs") == 0.5
    assert times.speed_ratio("ours", "absent") is None


def test_exponent_is_the_slope_of_a_power_law() -> None:
    assert exponent(Times({"1": [3.0, 5.0], "4": [24.0, 40.0], "16": [192.0, 320.0]})) == pytest.approx(1.5)


def test_a_worker_that_lacks_its_library_says_so(settings: Settings) -> None:
    with pytest.raises(PeerError, match="No module named 'sparsify'"):
        Worker(Path(sys.executable), "sparsify", settings)
