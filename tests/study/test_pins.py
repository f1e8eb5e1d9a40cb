"""A study that reads a hub data set stays with the commit that it found first, and needs no network to know that it is finished."""

import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from temporallens.activations.store import ActivationStore
from temporallens.errors import TemporalLensError
from temporallens.study.pins import PINS_FILE, new_pins, pinned_study, read_pins, texts_of
from temporallens.study.plan import plan_study
from temporallens.study.reading import read_study
from temporallens.study.run import run_study
from tiny_studies import documents

STUDY = """\
name: hub
threads: 1
scans: [{{model: {model}, text: owner/name, context_length: 16, sequences: 4}}]
activations:
  only: {{model: {model}, text: owner/name, layer: 0, context_length: 16, batch_size: 4, dtype: float32}}
arms:
  batchtopk: {{kind: batchtopk, features: 16, k: 2}}
training: {{steps: 4, batch_size: 32, log_every: 2, held_out: 0.4}}
evaluation:
  order: {{text: owner/name}}
"""
FIRST, SECOND = "a" * 40, "b" * 40


class Hub:
    """Stands in for the hub, which can be told to move on or to be out of reach."""

    def __init__(self) -> None:
        self.commit: str | None = FIRST
        self.asked = 0

    def dataset_info(self, name: str, revision: str | None = None, timeout: float | None = None) -> types.SimpleNamespace:
        self.asked += 1
        if self.commit is None:
            raise ConnectionError("no network")
        return types.SimpleNamespace(sha=self.commit)

    def load_dataset(
        self, path: str, configuration: None, *, split: str, streaming: bool, revision: str = FIRST
    ) -> Iterator[dict[str, str]]:
        if self.commit is None:
            raise ConnectionError("no network")
        return map(json.loads, documents(12, seed=(FIRST, SECOND).index(revision)).splitlines())


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub()
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=hub.load_dataset))
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", hub.dataset_info)
    return hub


@pytest.fixture
def study(sources: dict[str, Path], tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.format(**sources).replace("evaluation:\n  order: {text: owner/name}\n", ""))
    return path


def run(path: Path, folder: Path) -> list[str]:
    said: list[str] = []
    run_study(read_study(path), folder, "harvest", say=said.append)
    return said


def source(folder: Path) -> tuple[str, str]:
    said = ActivationStore(folder / "stores" / "only").manifest.description.source
    return said["text"], said["text_fingerprint"]


def test_a_run_stays_with_the_commit_that_it_found_first(hub: Hub, study: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    said = run(study, folder)
    assert said[0] == f"owner/name: read as owner/name@{FIRST}" and "harvest/only: done" in said
    assert source(folder) == (f"owner/name@{FIRST}", f"commit:{FIRST}")
    assert read_pins(folder) == {"owner/name": f"owner/name@{FIRST}"}
    hub.commit, hub.asked = SECOND, 0
    assert [line for line in run(study, folder) if "skipped" in line] == [
        "scan: 1 of 1 finished before, skipped",
        "harvest: 1 of 1 finished before, skipped",
    ]
    study.write_text(study.read_text().replace("layer: 0", "layer: 1"))  # what is done anew is done of the same texts
    run(study, folder)
    assert source(folder) == (f"owner/name@{FIRST}", f"commit:{FIRST}") and hub.asked == 0
    run(study, tmp_path / "other")
    assert source(tmp_path / "other") == (f"owner/name@{SECOND}", f"commit:{SECOND}")
    (folder / PINS_FILE).unlink()
    assert "harvest/only: done" in run(study, folder)
    assert source(folder) == source(tmp_path / "other")


def test_a_finished_run_is_known_without_a_network(hub: Hub, study: Path, tmp_path: Path) -> None:
    run(study, tmp_path / "run")
    hub.commit, hub.asked = None, 0
    assert all("done" not in line for line in run(study, tmp_path / "run"))
    plan = plan_study(read_study(study), tmp_path / "run")
    assert [line.finished for line in plan.lines[:2]] == [True] * 2
    plan_study(read_study(study), tmp_path / "never")
    assert hub.asked == 0


def test_without_the_hub_a_run_says_what_it_cannot_open_and_pins_nothing(hub: Hub, study: Path, tmp_path: Path) -> None:
    hub.commit = None
    with pytest.raises(TemporalLensError, match="there is no file or folder owner/name, and the hub data set cannot be opened: no network"):
        run(study, tmp_path / "run")
    assert not (tmp_path / "run" / PINS_FILE).exists()
    hub.commit = SECOND
    run(study, tmp_path / "run")
    assert source(tmp_path / "run") == (f"owner/name@{SECOND}", f"commit:{SECOND}")


def test_every_text_of_a_study_is_pinned_and_a_commit_in_the_study_is_kept(hub: Hub, sources: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.format(**sources))
    study = read_study(path).study
    pins = new_pins(study, {})
    assert hub.asked == 1 and texts_of(pinned_study(study, pins)) == {f"owner/name@{FIRST}"}
    path.write_text(STUDY.format(**sources).replace("owner/name", f"owner/name@{SECOND}"))
    assert new_pins(read_study(path).study, {}) == {} and hub.asked == 1


def test_damaged_pins_are_refused(hub: Hub, study: Path, tmp_path: Path) -> None:
    run(study, tmp_path / "run")
    path = tmp_path / "run" / PINS_FILE
    path.write_text(path.read_text().replace(FIRST, SECOND))
    with pytest.raises(TemporalLensError, match=r"texts\.json, .*changed or damaged; remove it to read the data sets as they are now"):
        run(study, tmp_path / "run")
