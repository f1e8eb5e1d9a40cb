"""Study files and their stages: what is refused and how, what is cached and when, and that a whole tiny study runs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from benchmarks.results import write_docs
from hypothesis import given, settings
from hypothesis import strategies as st

from temporallens.activations.models import LanguageModel
from temporallens.dictionaries.base import Progress
from temporallens.errors import TemporalLensError
from temporallens.study.config import Study, as_file_name, variant_name
from temporallens.study.plan import harvest_tokens, plan_study, readable_bytes, readable_time
from temporallens.study.reading import StudyFile, read_kept, read_study, write_kept
from temporallens.study.run import run_study
from temporallens.study.stages import Stage, stages_of
from temporallens.study.tables import dictionaries_table, plan_table, results_table, scan_table
from temporallens.training.trainer import Trainee
from tiny_models import tiny_model

STUDIES = Path(__file__).parents[1] / "studies"
VALID = """\
name: tiny
threads: 1
scans:
  - model: {model}
    text: {text}
    context_length: 16
    sequences: 4
activations:
  low: {{model: {model}, text: {text}, layer: 0, context_length: 16, batch_size: 4, dtype: float32}}
  high: {{model: {model}, text: {text}, layer: 2, context_length: 16, batch_size: 4, dtype: float32}}
arms:
  standard:
    kind: standard
    features: 48
  positional:
    kind: positional
    features: 48
    k: 4
    groups: 3
training:
  steps: 12
  batch_size: 32
  log_every: 4
  held_out: 0.4
seeds: [0]
"""


LEVELED = """\
name: leveled
threads: 1
activations:
  world:
    {source: world, width: 16, features: 24, positions: 16, sequences: 64, start: 3, periods: [4], active: 2, highest_rate: 0.2}
arms:
  batchtopk: {kind: batchtopk, features: 32}
  positional: {kind: positional, features: 32, groups: 3}
  standard: {kind: standard, features: 32, sparsity: 1.0}
levels: {k: [2, 4]}
seeds: [0, 1]
one_seed: {arms: [standard]}
notes: {standard: "training_steps: 0, final_loss: None"}
training: {steps: 12, batch_size: 64, learning_rate: 0.005, log_every: 6, held_out: 0.25}
"""


def documents(count: int, seed: int = 0) -> str:
    """JSON lines of a few dozen words each, all different."""
    words = ["state", "union", "people", "prices", "moon", "rain", "river", "bridge", "law", "peace", "trade", "road", "school", "winter"]
    texts = [" ".join(words[(seed + number * 7 + place * (number % 5 + 1)) % len(words)] for place in range(40)) for number in range(count)]
    return "".join(json.dumps({"text": f"{text}. Document {number} ends."}) + "\n" for number, text in enumerate(texts))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model and a tiny text."""
    folder = tmp_path_factory.mktemp("sources")
    text = folder / "text.jsonl"
    text.write_text(documents(12))
    return {"model": tiny_model("llama", folder / "llama"), "text": text}


@pytest.fixture
def write(tmp_path: Path, sources: dict[str, Path]) -> Callable[..., Path]:
    """Writes the valid study with some of its text replaced."""

    def write_study(*replacements: tuple[str, str]) -> Path:
        text = VALID.format(**sources)
        for old, new in replacements:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "study.yaml"
        path.write_text(text)
        return path

    return write_study


def refusal(path: Path) -> str:
    """The sentence with which a study file is refused."""
    with pytest.raises(TemporalLensError) as caught:
        read_study(path)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence.replace(str(path), "study.yaml")


# Reading


@pytest.mark.parametrize("name", ["quickstart", "gemma-2-2b"])
def test_the_shipped_studies_are_valid_and_name_the_three_arms(name: str) -> None:
    study = read_study(STUDIES / f"{name}.yaml").study
    assert study.name == name
    assert [arm.kind for arm in study.arms.values()] == ["standard", "batchtopk", "positional"]


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_study_is_valid_and_named_like_its_file(path: Path) -> None:
    study = read_study(path).study
    assert study.name == path.stem
    assert study.trainings()


def test_the_lab_notes_study_has_every_run_with_its_own_line() -> None:
    study = read_study(STUDIES / "lab-notes.yaml").study
    assert list(study.arms) == list(study.notes) == [f"run{number}" for number in range(10)]
    assert {arm.features for arm in study.arms.values()} == {2304}
    assert {arm.model_dump()["sparsity"] for arm in study.arms.values()} == {0.04}
    assert study.training.learning_rate == 3e-4


def test_the_gemma_study_is_the_lab_notes_setting() -> None:
    study = read_study(STUDIES / "gemma-2-2b.yaml").study
    (policy,) = study.activations.values()
    assert (policy.model, policy.layer, policy.context_length) == ("google/gemma-2-2b", 19, 128)
    assert {arm.features for arm in study.arms.values()} == {2304}
    assert study.training.learning_rate == 3e-4
    assert study.arms["standard"].model_dump()["sparsity"] == 0.04


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("    groups: 3\n", "    grups: 3\n", "study.yaml:19: unknown key 'grups' in arms.positional; did you mean 'groups'?"),
        ("  steps: 12\n", "  step: 12\n", "study.yaml:21: unknown key 'step' in training; did you mean 'steps'?"),
        ("seeds: [0]", "seed: [0]", "study.yaml:25: unknown key 'seed'; did you mean 'seeds'?"),
        ("sequences: 4", "sequence: 4", "study.yaml:7: unknown key 'sequence' in scans.0; did you mean 'sequences'?"),
        ("layer: 2, ", "layr: 2, ", "study.yaml:10: unknown key 'layr' in activations.high; did you mean 'layer'?"),
        (
            "    features: 48\n    k: 4",
            "    features: many\n    k: 4",
            "study.yaml:17: arms.positional.features is 'many': input should be a valid integer",
        ),
        ("steps: 12", "steps: 0", "study.yaml:21: training.steps is 0: input should be greater than or equal to 1"),
        ("held_out: 0.4", "held_out: 0", "study.yaml:24: training.held_out is 0: input should be greater than 0"),
        (
            "kind: positional",
            "kind: positoinal",
            "study.yaml:15: arms.positional has the unknown kind 'positoinal'; did you mean 'positional'?",
        ),
        ("    kind: standard\n", "", "study.yaml:12: arms.standard needs the key 'kind', which says what arm it is; it is one of: "),
        ("name: tiny\n", "", "study.yaml:1: the key 'name' is missing"),
        ("name: tiny", "name: ../tiny", "study.yaml:1: name is '../tiny': string should match pattern"),
        ("  low: ", "  a/b: ", "study.yaml:9: the name 'a/b' cannot name a folder: use letters, digits, dots, dashes and underscores"),
        ("layer: 0", "layer: middle", "study.yaml:9: activations.low.layer is 'middle': input should be a valid integer"),
        ("seeds: [0]", "seeds: [0, 0]", "study.yaml:25: seeds: a seed stands here twice, which would train the same dictionary twice"),
        ("seeds: [0]", "seeds: []", "study.yaml:25: seeds is empty: it needs at least one entry"),
        ("seeds: [0]", "threads: .inf", "study.yaml:25: the key 'threads' stands here a second time"),
        ("steps: 12", "steps: 12\n  warmup: .inf", "study.yaml:22: training.warmup is inf: input should be a finite number"),
        ("groups: 3", "groups: 16", "study.yaml: arms.positional does not fit activations.low: 16 groups cannot divide 16 positions"),
        ("layer: 2, ", "layer: 2, clock: sentense, ", "study.yaml:10: activations.high.clock: there is no clock 'sentense'; did you mean"),
        ("name: tiny", "name: 1790-01-08", "study.yaml:1: name is read as datetime.date(1790, 1, 8), which is no text: put it in quotes"),
        ("    kind: standard\n    features: 48\n", "", "study.yaml:12: arms.standard is empty: it should be a mapping of keys to values"),
        ("seeds: [0]", "name: other", "study.yaml:25: the key 'name' stands here a second time (first in line 1)"),
        ("seeds: [0]", "seeds: [0", "study.yaml:26 is not valid YAML: "),
        ("seeds: [0]", "? [a]\n: 1", "study.yaml:25: a key must be a plain word"),
        ("steps: 12", "steps: true", "study.yaml:21: training.steps is True: "),
        ("steps: 12", 'steps: "12"', "study.yaml:21: training.steps is '12': input should be a valid integer"),
        ("seeds: [0]", "seeds: [false]", "study.yaml:25: seeds.0 is False: input should be a valid integer"),
        ("seeds: [0]", "seeds: 0", "study.yaml:25: seeds is 0: it should be a list, in square brackets"),
        ("seeds: [0]", "seeds:\n  - -1", "study.yaml:26: seeds.0 is -1: input should be greater than or equal to 0"),
        ("threads: 1", "threads: 2000", "study.yaml:2: threads is 2000: input should be less than or equal to 1024"),
        ("seeds: [0]", "notes: &n {standard: *n}", "study.yaml is not a study: an alias in it stands for something that holds the alias"),
        ("seeds: [0]", "levels: {}\nlevel: {}", "study.yaml:26: unknown key 'level'; did you mean 'levels'?"),
        ("seeds: [0]", "levels: {k: []}", "study.yaml:25: levels.k is empty: it needs at least one entry"),
        ("seeds: [0]", "levels: {k: 4}", "study.yaml:25: levels.k is 4: it should be a list, in square brackets"),
        ("seeds: [0]", "levels: {k: [2, 2.0]}", "study.yaml:25: levels: a value of k stands here twice"),
        ("seeds: [0]", "levels: {k: [2, 49]}", "study.yaml: levels.k = 49 does not suit arms.positional: k = 49 codes per token"),
        ("seeds: [0]", "levels: {k: [2.5]}", "study.yaml: levels.k = 2.5 does not suit arms.positional: input should be a valid integer"),
        ("seeds: [0]", "levels: {spasity: [1]}", "study.yaml: no arm of this study has the level 'spasity' that levels varies"),
        ("seeds: [0]", "one_seed: {arm: []}", "study.yaml:25: unknown key 'arm' in one_seed; did you mean 'arms'?"),
        ("seeds: [0]", "one_seed: {arms: [postional]}", "study.yaml: one_seed.arms names 'postional', which this study does not have; did"),
        ("seeds: [0]", "one_seed: {activations: [hi]}", "study.yaml: one_seed.activations names 'hi', which this study does not have"),
        ("seeds: [0]", "notes: {run0: none}", "study.yaml: notes names 'run0', which this study does not have"),
        ("  high: {model", "  high: {source: wrold, model", "study.yaml:10: activations.high has the unknown source 'wrold'; did you mean"),
        ("layer: 2, ", "layr: 2, source: model, ", "study.yaml:10: unknown key 'layr' in activations.high; did you mean 'layer'?"),
        ("arms:", "  w: {source: world, widht: 8}\narms:", "study.yaml:11: unknown key 'widht' in activations.w; did you mean 'width'?"),
        ("arms:", "  r: {source: records, layer: 7}\narms:", "study.yaml:11: activations.r: layer = 7 is out of range"),
        ("arms:", "  empty:\narms:", "study.yaml:11: activations.empty is empty: it should be a mapping of keys to values"),
    ],
)
def test_a_mistake_is_told_in_one_sentence_with_its_line(write: Callable[..., Path], old: str, new: str, sentence: str) -> None:
    assert refusal(write((old, new))).startswith(sentence)


def test_the_first_of_several_mistakes_is_told(write: Callable[..., Path]) -> None:
    path = write(("groups: 3", "grups: 3"), ("seeds: [0]", "seed: [0]"), ("name: tiny\n", ""))
    assert refusal(path).startswith("study.yaml:18: unknown key 'grups'")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "study.yaml is empty"),
        (b"- a\n- b\n", "study.yaml is not a study: it should be a mapping with the keys name, scans, activations"),
        (b"\xff\xfe\x00", "study.yaml is not a text file in UTF-8"),
        (b"a" * (1 << 21), "study.yaml is larger than"),
        (b"[" * 5000, "study.yaml is not a study: its values are nested too deeply"),
        (b"!!python/object/apply:os.system [ls]", "study.yaml:1 is not valid YAML: could not determine a constructor"),
    ],
)
def test_what_is_no_study_is_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_bytes(content)
    assert refusal(path).startswith(sentence)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    assert "does not exist: it should be a study file" in refusal(tmp_path / "none.yaml")
    assert "is a folder: it should be a study file" in refusal(tmp_path)


@settings(max_examples=150)
@given(data=st.data())
def test_a_mutated_study_is_read_or_refused_with_one_line(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    text = VALID.format(model="smollm2-135m", text="sotu")
    start = data.draw(st.integers(0, len(text)))
    length = data.draw(st.integers(0, 12))
    junk = data.draw(st.text(st.sampled_from("abz019 :-[]{}\n'\"&*!?|>#%@,.\t\x00é"), max_size=8))
    path = tmp_path_factory.getbasetemp() / "mutated.yaml"
    path.write_text(text[:start] + junk + text[start + length :], "utf-8")
    assert "\n" not in told(path)


def told(path: Path) -> str:
    """What is said of a study file: nothing, where it is right."""
    try:
        read_study(path)
    except TemporalLensError as error:
        return str(error)
    return ""


def test_a_replaced_model_is_used_everywhere_and_recorded(write: Callable[..., Path], tmp_path: Path) -> None:
    original = read_study(write()).study
    study, text = read_study(write(), model="other/model")
    assert {policy.model for policy in study.activations.values()} == {"other/model"}
    assert [scan.model for scan in study.scans] == ["other/model"]
    assert (study.arms, study.training) == (original.arms, original.training)
    kept = tmp_path / "kept.yaml"
    kept.write_text(text)
    assert read_study(kept).study == study
    assert text.startswith("# Written by --model other/model")


# Levels and seeds


def test_every_arm_with_the_field_is_trained_at_each_level_and_the_others_once(write: Callable[..., Path]) -> None:
    study = read_study(write(("seeds: [0]", "levels: {k: [2, 6]}"))).study
    variants = study.variants()
    assert list(variants) == ["standard", "positional-k2", "positional-k6"]
    assert [(variant.family, variant.level) for variant in variants.values()] == [("standard", None), ("positional", 2), ("positional", 6)]
    assert variants["positional-k6"].arm == study.arms["positional"].model_copy(update={"k": 6})
    assert len(study.trainings()) == 2 * 3


def test_an_arm_at_a_level_may_not_take_the_name_of_another(write: Callable[..., Path]) -> None:
    taken = ("  standard:\n", "  positional-k4: {kind: standard}\n  standard:\n")
    assert "two arms would be called 'positional-k4'" in refusal(write(taken, ("seeds: [0]", "levels: {k: [4]}")))


def test_names_of_levels_can_be_read_back() -> None:
    assert [variant_name("a", *level) for level in (("k", 16.0), ("sparsity", 1.5), ("l0", 8.0))] == ["a-k16", "a-sparsity1.5", "a-l0-8"]


def test_what_has_one_seed_is_trained_with_the_first_only(write: Callable[..., Path]) -> None:
    study = read_study(write(("seeds: [0]", "seeds: [3, 1]\none_seed: {arms: [standard], activations: [high]}"))).study
    assert [tuple(training) for training in study.trainings()] == [
        ("low", "standard", 3),
        ("low", "positional", 3),
        ("low", "positional", 1),
        ("high", "standard", 3),
        ("high", "positional", 3),
    ]


def test_a_source_has_a_policy_of_its_own_which_alone_shapes_its_store(write: Callable[..., Path]) -> None:
    entries = "  w: {source: world, positions: 32, sequences: 64}\n  r: {source: records, records: 64}\narms:"
    first, other = write(("arms:", entries)), ("sequences: 64", "sequences: 68")
    study, before = read_study(first).study, stages(first)
    kinds = [type(entry).__name__ for entry in study.activations.values()]
    assert kinds == ["HarvestPolicy", "HarvestPolicy", "WorldPolicy", "RecordsPolicy"]
    found = changed(before, stages(write(("arms:", entries), other)))
    assert {name for name in found if name.startswith("harvest/")} == {"harvest/w"}
    assert study.with_model("other/model").activations["w"] == study.activations["w"]
    plan = plan_study(read_study(first), first.parent / "run")
    tokens = {line.stage.name: line.tokens for line in plan.lines}
    assert (tokens["harvest/w"], tokens["harvest/r"]) == (68 * 32, 64 * 43)
    assert all(line.seconds is not None for line in plan.lines)


def test_a_model_cannot_replace_none(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(LEVELED)
    with pytest.raises(TemporalLensError, match="reads no model that could be replaced: leave out --model"):
        read_study(path, model="other/model")


def test_a_batch_that_a_store_cannot_fill_is_refused_beforehand(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(LEVELED.replace("batch_size: 64", "batch_size: 1000"))
    sentence = "batch_size is 1,000, but activations.world holds at most 1,024 activations, of which 0.25 are held out"
    for attempt in (run, lambda *arguments: plan_study(read_study(arguments[0]), arguments[1])):
        with pytest.raises(TemporalLensError, match=sentence):
            attempt(path, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_hub_model_that_cannot_be_had_is_refused_before_anything_is_done(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("temporallens.activations.models._hub_is_known", lambda: False)
    path = write()
    text = path.read_text()
    path.write_text(text.replace(text[text.index("  high:") : text.index("arms:")], "  high: {model: smolm2-135m, layer: 2}\n"))
    with pytest.raises(TemporalLensError, match=r"smolm2-135m was found neither here nor on the hub .*; did you mean 'smollm2-135m'\?"):
        run(path, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Stages


def stages(path: Path) -> dict[str, Stage]:
    study_file = read_study(path)
    return {stage.name: stage for stage in stages_of(study_file.study, study_file.text)}


def changed(before: dict[str, Stage], after: dict[str, Stage]) -> set[str]:
    return {name for name in before if after[name].fingerprint != before[name].fingerprint}


END = {"results", "figures", "report"}
GUIDE = {
    "position_analysis",
    "comparative_analysis",
    "position_weights",
    "sparsity_analysis",
    "temporal_clustering",
    "cluster_patterns",
    "masks",
}
"""Pictures of an activations entry with an arm that has a mask and of which no section of `evaluation` was measured."""


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("k: 4", "k: 5", {f"{kind}/{store}/positional-seed0" for kind in ("train", "evaluate") for store in ("low", "high")} | END),
        (
            "layer: 2",
            "layer: 3",
            {"harvest/high"} | {f"{kind}/high/{arm}-seed0" for kind in ("train", "evaluate") for arm in ("standard", "positional")} | END,
        ),
        ("sequences: 4", "sequences: 5", {"scan"} | END),
        ("seeds: [0]", "seeds: [0, 1]", END),
        ("name: tiny", "# a remark\nname: tiny", {"report"}),
    ],
)
def test_a_changed_setting_invalidates_just_what_depends_on_it(write: Callable[..., Path], old: str, new: str, expected: set[str]) -> None:
    before = stages(write())
    found = changed(before, stages(write((old, new))))
    assert {name if not name.startswith("scan/") else "scan" for name in found} == expected


def test_changed_training_retrains_but_does_not_harvest(write: Callable[..., Path]) -> None:
    before = stages(write())
    found = changed(before, stages(write(("steps: 12", "steps: 13"))))
    assert {name.split("/")[0] for name in found} == {"train", "evaluate"} | END


def test_a_changed_text_or_model_invalidates_everything(write: Callable[..., Path], sources: dict[str, Path], tmp_path: Path) -> None:
    text, model = tmp_path / "text.jsonl", tmp_path / "llama"
    shutil.copy(sources["text"], text)
    shutil.copytree(sources["model"], model)
    path = write((str(sources["text"]), str(text)), (str(sources["model"]), str(model)))
    before = stages(path)
    assert changed(before, stages(path)) == set()
    text.write_text(documents(13))
    assert changed(before, stages(path)) == set(before)
    text.write_text(documents(12))
    tiny_model("llama", model, seed=1)
    assert changed(before, stages(path)) == set(before)


def test_file_names_hold_nothing_that_a_path_could_misread() -> None:
    assert as_file_name("google/gemma-2-2b") == "google-gemma-2-2b"
    assert as_file_name("../../etc/passwd") == "etc-passwd"
    assert as_file_name("..") == "model"


# Running


def results_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "results.json").read_text()))


def run(path: Path, folder: Path) -> list[str]:
    """Run the study and return what it said."""
    said: list[str] = []
    run_study(read_study(path), folder, say=said.append)
    return said


# One tiny study is run once; each test goes on from a copy of its folder.

one_worker = pytest.mark.xdist_group("study")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, sources: dict[str, Path]) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    path = folder / "given.yaml"
    path.write_text(VALID.format(**sources))
    run(path, folder / "run")
    return folder / "run"


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@one_worker
def test_it_leaves_results_figures_a_report_and_its_own_study(folder: Path, sources: dict[str, Path]) -> None:
    results = results_of(folder)
    assert [(run["activations"], run["arm"]) for run in results["runs"]] == [
        (store, arm) for store in ("low", "high") for arm in ("standard", "positional")
    ]
    assert all(run["training_steps"] == 12 for run in results["runs"])
    assert list(results["scans"]) == [str(sources["model"])]
    pictures = {path.stem for path in (folder / "figures").glob("*.png")}
    assert pictures == {
        *("scan", "frontier", *GUIDE),
        *(f"{name}-high" for name in GUIDE - {"position_analysis"}),
        *(f"position_analysis-{run['activations']}-{run['arm']}-seed0" for run in results["runs"]),
    }
    assert "position_analysis" not in (folder / "report.html").read_text()  # pictures are inlined
    assert read_kept(folder / "study.yaml").text == VALID.format(**sources)


@one_worker
def test_run_again_it_does_nothing(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name not in {"study.yaml", ".lock"}}
    said = run(folder / "study.yaml", folder)
    assert said == [
        "scan: 1 of 1 finished before, skipped",
        "harvest: 2 of 2 finished before, skipped",
        "train: 4 of 4 finished before, skipped",
        "evaluate: 5 of 5 finished before, skipped",
        "figures: 1 of 1 finished before, skipped",
        "report: 1 of 1 finished before, skipped",
    ]
    assert {path: path.stat().st_mtime_ns for path in before} == before


@one_worker
def test_a_changed_arm_is_trained_alone_and_the_rest_keeps_its_bits(folder: Path, write: Callable[..., Path]) -> None:
    before = results_of(folder)
    said = run(write(("k: 4", "k: 5")), folder)
    assert [line for line in said if line.startswith("train")] == [
        "train: 2 of 4 finished before, skipped",
        "train/low/positional-seed0: done",
        "train/high/positional-seed0: done",
    ]
    after = results_of(folder)
    for old, new in zip(before["runs"], after["runs"], strict=True):
        assert (old == new) == (old["arm"] == "standard")


@one_worker
def test_a_lost_output_is_made_again_with_the_same_bits(folder: Path) -> None:
    before = (folder / "results.json").read_bytes()
    shutil.rmtree(folder / "arms" / "low" / "standard-seed0")
    (folder / "results.json").unlink()
    said = run(folder / "study.yaml", folder)
    assert "train: 3 of 4 finished before, skipped" in said
    assert (folder / "results.json").read_bytes() == before


@one_worker
def test_a_failed_stage_leaves_no_results_and_the_finished_ones(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object) -> None:
        raise TemporalLensError("the loss became NaN")

    with monkeypatch.context() as patch:
        patch.setattr("temporallens.study.run.train_arms", fail)
        with pytest.raises(TemporalLensError, match="became NaN"):
            run(write(), tmp_path / "run")
    assert not (tmp_path / "run" / "results.json").exists()
    assert "harvest: 2 of 2 finished before, skipped" in run(write(), tmp_path / "run")


@one_worker
def test_layers_of_one_model_are_harvested_in_one_pass(write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[Any] = []
    original = LanguageModel.load.__func__  # type: ignore[attr-defined]

    def load(cls: type[LanguageModel], *arguments: Any, **keywords: Any) -> LanguageModel:
        loads.append(keywords.get("up_to"))
        return original(cls, *arguments, **keywords)

    monkeypatch.setattr(LanguageModel, "load", classmethod(load))
    study, text = read_study(write())
    run_study(StudyFile(study.model_copy(update={"scans": ()}), text), tmp_path / "run", "harvest")
    assert loads == [2]
    assert not (tmp_path / "run" / "arms").exists()


@one_worker
@pytest.mark.parametrize("stage", ["train_arms", "evaluate_reconstruction"])
def test_a_changed_study_that_fails_half_way_does_not_show_old_results(
    folder: Path, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    def fail(*_arguments: object, **_named: object) -> None:
        raise TemporalLensError("stop")

    monkeypatch.setattr(f"temporallens.study.run.{stage}", fail)
    with pytest.raises(TemporalLensError, match="stop"):
        run(write(("k: 4", "k: 5")), folder)
    assert not [name for name in ("results.json", "report.html", "figures") if (folder / name).exists()]


@one_worker
def test_a_changed_study_that_is_only_harvested_does_not_show_old_results(folder: Path, write: Callable[..., Path]) -> None:
    run_study(read_study(write(("k: 4", "k: 5"))), folder, "harvest")
    assert not (folder / "results.json").exists()


@one_worker
def test_files_in_scans_that_the_study_does_not_name_are_not_read(folder: Path) -> None:
    before = (folder / "results.json").read_bytes()
    (folder / "scans" / "foreign.json").write_text("{")
    (folder / "results.json").unlink()
    run(folder / "study.yaml", folder)
    assert (folder / "results.json").read_bytes() == before


@one_worker
def test_a_checkpoint_is_gone_on_from_and_removed_once_its_settings_are_abandoned(
    folder: Path, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    many = ("steps: 12", "steps: 40\n  checkpoint_every: 4")

    def interrupted(path: Path) -> list[str]:
        steps: list[int] = []

        def stop(self: Trainee, x: Any, position: Any, place: Progress, *rest: Any) -> None:
            steps.append(place.step)
            if len(steps) > 20:
                raise KeyboardInterrupt
            step(self, x, position, place, *rest)

        step = Trainee.step
        with monkeypatch.context() as patch:
            patch.setattr(Trainee, "step", stop)
            with pytest.raises(KeyboardInterrupt):
                run(path, folder)
        assert min(steps) == started
        return sorted(path.name for path in (folder / "arms" / "low").glob("checkpoint-*"))

    started = 0
    first = interrupted(write(many))
    started = 8  # two arms, 20 steps: the checkpoint stands behind the eighth of each
    assert interrupted(write(many)) == first
    started = 0
    second = interrupted(write(many, ("k: 4", "k: 5")))
    assert len(first) == len(second) == 2  # the last two
    assert not set(first) & set(second)


@one_worker
def test_a_scan_that_is_no_longer_asked_for_leaves_the_results(folder: Path, write: Callable[..., Path]) -> None:
    path = write()
    text = path.read_text()
    path.write_text(text.replace(text[text.index("scans:") : text.index("activations:")], ""))
    run(path, folder)
    assert results_of(folder)["scans"] == {}


one_other_worker = pytest.mark.xdist_group("leveled")


@pytest.fixture(scope="module")
def leveled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("leveled")
    path = folder / "given.yaml"
    path.write_text(LEVELED)
    run(path, folder / "run")
    return folder / "run"


@one_other_worker
def test_a_study_of_levels_compares_its_arms_at_equal_l0(leveled: Path) -> None:
    results = results_of(leveled)
    assert len(results["runs"]) == 2 * 2 * 2 + 1
    comparison = results["comparison"]["world"]
    assert (comparison["l0"], comparison["baselines"]) == ([2, 4], ["batchtopk"])
    row = next(row for row in comparison["against"] if (row["family"], row["l0"]) == ("positional", 4))
    assert row["fve"]["seeds"] == 2 and row["fve"]["low"] < row["fve"]["value"] < row["fve"]["high"]
    assert all(run["world"]["mcc"] <= 1 and run["fields"] is None for run in results["runs"])
    assert (results["runs"][0]["arm"], results["runs"][0]["family"], results["runs"][0]["level"]) == ("batchtopk-k2", "batchtopk", 2)


@one_other_worker
def test_a_study_of_levels_draws_its_frontier_and_one_picture_of_each_arm(leveled: Path) -> None:
    pictures = {path.stem for path in (leveled / "figures").glob("*.png")}
    arms = {"batchtopk-k4", "positional-k4", "standard"}
    assert pictures == {"frontier"} | GUIDE | {f"position_analysis-world-{arm}-seed0" for arm in arms}
    page = (leveled / "report.html").read_text()
    for word in ("arms at equal L0", "against the known truth", "one seed", "training_steps: 0, final_loss: None"):
        assert word in page


@one_other_worker
def test_the_tables_of_a_study_of_levels_have_a_row_per_arm_and_per_dictionary(leveled: Path) -> None:
    from temporallens.evaluation.results import load_results

    results = load_results(leveled)
    assert results_table(results).row_count == 3
    table = dictionaries_table(results)
    assert table.row_count == 9
    assert list(table.columns[-1].cells) == [*[""] * 8, "training_steps: 0, final_loss: None"]


@one_other_worker
def test_what_is_documented_of_a_study_is_the_same_twice_and_leaves_the_rest_alone(leveled: Path, tmp_path: Path) -> None:
    numbers, page = write_docs(leveled, tmp_path)
    page.write_text(page.read_text().replace("## leveled", "## Levels\n\nWhat this says.") + "\nThe end.\n")
    before = page.read_bytes(), numbers.read_bytes()
    assert write_docs(leveled, tmp_path) == [numbers, page]
    assert (page.read_bytes(), numbers.read_bytes()) == before
    kept = json.loads(numbers.read_text())
    assert list(kept["openness_by_position"]["world"]) == ["positional-k2", "positional-k4"]
    assert len(kept["runs"]) == 9 and not [key for run in kept["runs"] for key, value in run.items() if isinstance(value, list)]
    assert kept["runs"][0]["world"]["mcc"] > 0
    assert "| positional | 2 |" in page.read_text()


@one_other_worker
def test_dictionaries_trained_a_few_at_a_time_are_the_same_bits(leveled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("temporallens.study.run.TOGETHER", 5)
    shutil.copytree(leveled / "stores", tmp_path / "run" / "stores")
    write_kept(tmp_path / "run" / "study.yaml", LEVELED)
    run_study(read_study(tmp_path / "run" / "study.yaml"), tmp_path / "run", "train")
    for path in (leveled / "arms").rglob("*.safetensors"):
        assert (tmp_path / "run" / path.relative_to(leveled)).read_bytes() == path.read_bytes()


@one_other_worker
def test_an_interruption_loses_no_finished_part_of_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(LEVELED)
    trained: list[list[str]] = []

    def interrupted(_store: Any, arms: Any, _policy: Any, out: Path) -> None:
        trained.append([arm.name for arm in arms])
        if len(trained) == 2:
            raise KeyboardInterrupt
        for arm in arms:
            (out / arm.name).mkdir(parents=True)
            (out / arm.name / "training.json").write_text("{}")

    monkeypatch.setattr("temporallens.study.run.TOGETHER", 6)
    monkeypatch.setattr("temporallens.study.run.train_arms", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(path, tmp_path / "run")
    run_study(read_study(path), tmp_path / "run", "train")
    assert [len(names) for names in trained] == [6, 3, 3]
    assert trained[1] == trained[2]


@one_other_worker
def test_a_process_that_dies_just_before_it_removes_checkpoints_leaves_none_for_ever(
    leveled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def died(_path: Path) -> None:
        raise KeyboardInterrupt

    run_folder, path = tmp_path / "run", tmp_path / "study.yaml"
    path.write_text(LEVELED)
    shutil.copytree(leveled / "stores", run_folder / "stores")
    write_kept(run_folder / "study.yaml", LEVELED)
    with monkeypatch.context() as patched:
        patched.setattr("temporallens.training.trainer.remove_checkpoints", died)
        with pytest.raises(KeyboardInterrupt):
            run_study(read_study(path), run_folder, "train")
    assert list(run_folder.rglob("checkpoint-*"))
    run_study(read_study(path), run_folder, "train")
    assert not list(run_folder.rglob("checkpoint-*"))


@one_worker
def test_the_folder_of_another_study_is_refused_untouched(folder: Path, write: Callable[..., Path]) -> None:
    kept = (folder / "study.yaml").read_bytes()
    with pytest.raises(TemporalLensError, match="holds the study 'tiny', not 'other'; choose another output folder"):
        run(write(("name: tiny", "name: other")), folder)
    assert (folder / "study.yaml").read_bytes() == kept


@one_worker
def test_the_tables_show_every_run_and_layer(folder: Path) -> None:
    from temporallens.evaluation.results import load_results

    results = load_results(folder)
    assert results_table(results).row_count == 4
    (scan,) = results["scans"].values()
    assert scan_table(scan).row_count == len(scan["layers"]) == 5


@one_worker
def test_the_plan_says_what_is_finished(folder: Path, write: Callable[..., Path]) -> None:
    plan = plan_study(read_study(folder / "study.yaml"), folder)
    assert all(line.finished for line in plan.lines)
    assert plan.notes == ["14 of 14 stages are finished; there is nothing to do."]
    plan = plan_study(read_study(write(("k: 4", "k: 5"))), folder)
    assert {line.stage.kind for line in plan.lines if not line.finished} == {"train", "evaluate", "figures", "report"}
    assert plan_table(plan).row_count == 14


def test_a_folder_that_is_no_run_is_refused_untouched(write: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "letter.txt").write_text("dear")
    with pytest.raises(TemporalLensError, match="is not empty and holds no study; choose an empty output folder"):
        run(write(), folder)
    assert [path.name for path in folder.iterdir()] == ["letter.txt"]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("layer: 2", "layer: 31", "layer 31 is out of range: .*llama has layers 0 to 3"),
        (
            "layer: 2, context_length: 16",
            "layer: 2, context_length: 65",
            "activations.high.context_length is 65, too long: .*llama has 64 positions",
        ),
        ("text.jsonl", "none.jsonl", "there is no text at .*none.jsonl"),
    ],
)
def test_what_the_model_or_text_cannot_give_is_refused_before_anything_is_written(
    write: Callable[..., Path], tmp_path: Path, old: str, new: str, sentence: str
) -> None:
    with pytest.raises(TemporalLensError, match=sentence):
        run(write((old, new)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# The plan


def test_the_plan_writes_nothing_and_counts_tokens(write: Callable[..., Path], tmp_path: Path) -> None:
    plan = plan_study(read_study(write()), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    tokens = {line.stage.name: line.tokens for line in plan.lines}
    assert tokens["train/low/standard-seed0"] == 12 * 32
    assert not any(line.finished for line in plan.lines)
    assert all(line.seconds is not None for line in plan.lines)
    assert "GFLOP/s, timed just now" in plan.notes[1]


def test_the_plan_of_a_model_out_of_reach_says_what_is_unknown(write: Callable[..., Path], tmp_path: Path) -> None:
    plan = plan_study(read_study(write(), model="nobody/nothing"), tmp_path / "run")
    assert {line.seconds for line in plan.lines if line.stage.kind == "harvest"} == {None}
    assert "without those marked ?" in plan.notes[0]


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({}, 2_450_000),
        ({"max_tokens": 1000}, 1000),
        ({"rows_per_document": 8}, 249 * 8 * 128),
        ({"rows": "document"}, 249 * 128),
        ({"text": "someone/texts"}, None),
        ({"text": "someone/texts", "max_tokens": 500}, 500),
    ],
)
def test_tokens_are_what_the_text_holds_bounded_by_the_policy(fields: dict[str, Any], tokens: int | None) -> None:
    raw = yaml.safe_load((STUDIES / "gemma-2-2b.yaml").read_text())
    entry = {key: value for key, value in raw["activations"]["layer-19"].items() if key != "rows_per_document"} | fields
    study = Study.model_validate(raw | {"activations": {"only": entry}})
    assert harvest_tokens(study.activations["only"]) == tokens


def test_amounts_are_readable() -> None:
    assert [readable_time(seconds) for seconds in (0.1, 40, 300, 9000)] == ["1 s", "40 s", "5 min", "2.5 h"]
    assert [readable_bytes(size) for size in (12, 12_000, 340e6, 4.1e9)] == ["12 bytes", "12 KB", "340 MB", "4.1 GB"]
