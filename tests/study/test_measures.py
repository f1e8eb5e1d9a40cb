"""The sections of a study's evaluation: what is measured, once, and where it is found."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from temporallens.dictionaries.kinds import Arm, BatchTopK, Positional, Standard
from temporallens.errors import TemporalLensError
from temporallens.evaluation.results import load_results
from temporallens.evaluation.sections import SECTIONS, Evaluation
from temporallens.files import read_json
from temporallens.layout import RunId
from temporallens.report.measured import measured_sections
from temporallens.serial import as_json
from temporallens.study import run as study_run
from temporallens.study.config import Variant
from temporallens.study.gains import partners
from temporallens.study.pictures import pictures_of
from temporallens.study.reading import read_study
from temporallens.study.run import run_study
from tiny_models import tiny_model
from tiny_studies import draw_headline_alone

WORDS = ["state", "union", "people", "prices", "moon", "rain", "river", "bridge", "law", "peace", "trade", "road", "school", "winter"]

STUDY = """\
name: measured
threads: 1
activations:
  low: {{model: {model}, text: {text}, layer: 0, context_length: 16, batch_size: 4, dtype: float32}}
  world:
    {{source: world, width: 16, features: 24, positions: 16, sequences: 64, start: 3, periods: [4], active: 2, highest_rate: 0.2}}
arms:
  batchtopk: {{kind: batchtopk, features: 32}}
  positional: {{kind: positional, features: 32, groups: 3}}
levels: {{k: [2, 4]}}
seeds: [0, 1]
training: {{steps: 12, batch_size: 32, learning_rate: 0.005, log_every: 6, held_out: 0.4, snapshots: 1}}
evaluation:
  positions: {{least_firings: 5, least_tokens: 2, resamples: 20}}
  bits: {{folds: 3, draws: 1, resamples: 20}}
  splicing: {{rows: 2, resamples: 20}}
  fidelity: {{rows: 4, shifts: [1, 2], least_firings: 2, resamples: 20}}
  clusters: {{least_firings: 20, least_features: 2, sample: 32, draws: 19, bootstraps: 2}}
  features: {{bins: 6, contexts: 2, draws: 40}}
"""

FEATURES = 32


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    text = folder / "text.jsonl"
    lines = [" ".join(WORDS[(number * 7 + place * (number % 5 + 1)) % len(WORDS)] for place in range(40)) for number in range(12)]
    text.write_text("".join(json.dumps({"text": f"{line}. Document {number} ends."}) + "\n" for number, line in enumerate(lines)))
    return {"model": tiny_model("llama", folder / "llama"), "text": text}


@pytest.fixture(scope="module")
def finished(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("measured")
    (folder / "study.yaml").write_text(STUDY.format(**sources))
    run_study(read_study(folder / "study.yaml"), folder / "run", up_to="evaluate")
    return folder


def test_the_dictionaries_that_are_shown_are_measured_and_no_others(finished: Path) -> None:
    results = load_results(finished / "run")
    measured = {(run.activations, run.arm, run.seed): set(run.measures) for run in results.runs if run.measures}
    everywhere = {"positions", "bits", "clusters"}  # the section `features` is for the report alone
    of_model = everywhere | {"splicing", "fidelity"}
    assert measured == {
        ("low", "batchtopk-k4", 0): of_model,
        ("low", "positional-k4", 0): of_model,
        ("world", "batchtopk-k4", 0): everywhere,
        ("world", "positional-k4", 0): everywhere,
    }


def test_positions_see_the_soft_state_the_snapshots_and_the_other_seeds(finished: Path) -> None:
    runs: dict[tuple[str, str, int], Any] = {(run.activations, run.arm, run.seed): run for run in load_results(finished / "run").runs}
    positional, plain = (runs["world", f"{arm}-k4", 0].measures["positions"] for arm in ("positional", "batchtopk"))
    assert positional["hardening"] is not None
    assert plain["hardening"] is None
    for measured in (positional, plain):
        assert list(measured["annealing"]) == ["6"]
        assert len(measured["seeds"]) == 1


def test_bits_are_known_from_tokens_where_there_are_some_and_drawn(finished: Path) -> None:
    results = load_results(finished / "run")
    runs: dict[tuple[str, str, int], Any] = {(run.activations, run.arm, run.seed): run for run in results.runs}
    for arm in ("batchtopk-k4", "positional-k4"):
        low, world = (runs[entry, arm, 0].measures["bits"] for entry in ("low", "world"))
        assert low["saved"]["token"]["share"]["value"] > low["saved"]["token"]["null"]["value"]
        assert world["saved"]["token"] is None and world["counted_tokens"] > world["tokens"]
    assert {picture.name for picture in pictures_of(finished / "run", results)} > {"bits", "bits-world"}
    unmeasured = results.model_copy(update={"runs": [run.model_copy(update={"measures": {}}) for run in results.runs]})
    assert not {picture.name for picture in pictures_of(finished / "run", unmeasured)} & {"bits", "bits-world"}
    assert [table.title for table in measured_sections(results)[0].tables].count("Bits that are known beforehand") == 1


def test_what_there_is_of_every_feature_stays_in_the_file_of_the_measurement(finished: Path) -> None:
    path = finished / "run" / "measures" / "positions" / "world" / "positional-k4-seed0.json"
    whole = json.loads(path.read_text())
    assert len(whole["features"]["feature"]) == len(whole["features"]["q"]) > 0
    runs = load_results(finished / "run").runs_of("world")
    kept: Any = next(run.measures["positions"] for run in runs if run.arm == "positional-k4")
    assert "features" not in kept
    assert kept["specialised"] == whole["specialised"]


def test_the_results_hold_no_list_with_an_entry_for_every_feature(finished: Path) -> None:
    def lengths(value: Any) -> Iterator[int]:
        if isinstance(value, dict | list):
            yield len(value)
            for part in value.values() if isinstance(value, dict) else value:
                yield from lengths(part)

    runs = [run for run in load_results(finished / "run").runs if run.measures]
    assert {run.features for run in runs} == {FEATURES}
    assert max(length for run in runs for length in lengths(run.measures)) < FEATURES
    whole = json.loads((finished / "run" / "measures" / "features" / "world" / "positional-k4-seed0.json").read_text())
    assert len(whole["rate"]) == len(whole["contexts"]) == FEATURES


@pytest.mark.slow
def test_the_report_shows_every_feature_of_what_this_study_looks_at(
    finished: Path, tmp_path: Path, sources: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(finished / "run", tmp_path / "run"))
    run_study(read_study(finished / "study.yaml"), run)
    assert browsed(run) == [
        f"{place}, seed 0" for place in ("low, positional-k4", "world, positional-k4", "low, batchtopk-k4", "world, batchtopk-k4")
    ]
    draw_headline_alone(monkeypatch)
    unlooked = tmp_path / "study.yaml"
    unlooked.write_text("".join(line for line in STUDY.format(**sources).splitlines(keepends=True) if not line.startswith("  features:")))
    run_study(read_study(unlooked), run)
    assert (run / "measures" / "features").exists() and browsed(run) == []


def browsed(run: Path) -> list[str]:
    """Titles of the dictionaries in a report's feature browser, each with an entry for every feature."""
    data = re.findall(r'<script type="application/json" id="browsed-\d+">(.*?)</script>', (run / "report.html").read_text("utf-8"))
    own = [json.loads(text) for text in data]
    assert all(len(one["firings"]) == len(one["contexts"]) == FEATURES for one in own)
    return [one["title"] for one in own]


def test_another_setting_does_one_section_again_and_trains_nothing(finished: Path, tmp_path: Path, sources: dict[str, Path]) -> None:
    shutil.copytree(finished / "run", tmp_path / "run")
    changed = tmp_path / "study.yaml"
    changed.write_text(STUDY.format(**sources).replace("shifts: [1, 2]", "shifts: [1]"))
    done: list[str] = []
    run_study(read_study(changed), tmp_path / "run", up_to="evaluate", say=done.append)
    assert {line for line in done if line.startswith("measure/")} == {
        "measure/fidelity/low/batchtopk-k4-seed0: done",
        "measure/fidelity/low/positional-k4-seed0: done",
    }
    assert not [line for line in done if line.startswith("train/")]
    again: list[str] = []
    run_study(read_study(changed), tmp_path / "run", up_to="evaluate", say=again.append)
    assert not [line for line in again if line.endswith(": done")]


def test_every_dictionary_can_be_measured(finished: Path, tmp_path: Path, sources: dict[str, Path]) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.format(**sources).replace("evaluation:\n", "evaluation:\n  runs: all\n"))
    study, text = read_study(path)
    stages = [stage for stage in study_run.stages_of(study, text) if stage.section == "positions"]
    assert len(stages) == len(study.trainings()) == 16


def test_a_section_that_needs_a_model_is_refused_where_there_is_none(tmp_path: Path, sources: dict[str, Path]) -> None:
    lines = STUDY.format(**sources).splitlines()
    path = tmp_path / "study.yaml"
    path.write_text("\n".join(line for line in lines if not line.startswith("  low:")) + "\n")
    with pytest.raises(TemporalLensError, match=r"evaluation\.splicing reads a language model again"):
        read_study(path)


def test_a_dictionary_is_compared_with_the_ordinary_one_of_its_level_and_seed() -> None:
    def one(family: str, arm: Arm, seed: int) -> tuple[RunId, Variant]:
        return RunId("x", f"{family}-{getattr(arm, 'k', 'x')}", seed), Variant(family, None, arm)

    ordinary = [one("plain", BatchTopK(k=k), seed) for k in (16, 32) for seed in (0, 1)]
    others = [one("masked", Positional(k=k), seed) for k in (16, 32) for seed in (0, 1)] + [one("relu", Standard(), 0)]
    assert partners([*others, *ordinary]) == {f"masked-{k}-seed{seed}": f"plain-{k}-seed{seed}" for k in (16, 32) for seed in (0, 1)}
    assert set(partners([*others, ordinary[0]]).values()) == {"plain-16-seed0"}  # the only one there is
    assert partners(others[:4]) == {}


def test_the_study_can_name_every_section_with_its_own_policy() -> None:
    assert list(SECTIONS) == [name for name in Evaluation.model_fields if name != "runs"]
    for name, section in SECTIONS.items():
        assert section.name == name and section.policy in Evaluation.model_fields[name].annotation.__args__


@pytest.mark.parametrize("name", ["positions", "bits", "clusters", "splicing", "fidelity"])
def test_a_measurement_is_read_from_its_file_and_from_the_results(finished: Path, name: str) -> None:
    section = SECTIONS[name]
    for path in sorted((finished / "run" / "measures" / name).rglob("*.json")):
        content = read_json(path, "a measurement")
        summary = section.summary(content)
        assert as_json(section.read(summary)) == as_json(section.read(content)) | {
            detail: None for detail in section.details if "." not in detail
        } | ({"shifts": as_json(section.read(summary))["shifts"]} if name == "fidelity" else {})
        assert section.summary(as_json(section.read(summary))) == summary


def test_a_section_of_a_new_version_is_measured_again_and_nothing_else(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished / "run", tmp_path / "run")
    monkeypatch.setitem(SECTIONS, "splicing", replace(SECTIONS["splicing"], version=SECTIONS["splicing"].version + 1))
    done: list[str] = []
    run_study(read_study(finished / "study.yaml"), tmp_path / "run", up_to="evaluate", say=done.append)
    assert [line for line in done if line.endswith(": done")] == [
        "measure/splicing/low/batchtopk-k4-seed0: done",
        "measure/splicing/low/positional-k4-seed0: done",
        "results: done",
    ]
