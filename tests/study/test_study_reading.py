"""Study files and their stages: what is refused and how, and what a change of a setting invalidates."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from temporallens.dictionaries.kinds import Positional
from temporallens.errors import TemporalLensError
from temporallens.study.config import as_file_name, variant_name
from temporallens.study.plan import plan_study
from temporallens.study.reading import read_copy, read_study, write_copy
from temporallens.study.stages import Stage, stages_of
from tiny_models import tiny_model
from tiny_studies import LEVELED, VALID, documents

STUDIES = Path(__file__).parents[2] / "studies"


def refusal(path: Path) -> str:
    """The sentence with which a study file is refused."""
    with pytest.raises(TemporalLensError) as caught:
        read_study(path)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence.replace(str(path), "study.yaml")


# Reading


@pytest.mark.parametrize("name", ["quickstart", "gemma-2-2b"])
def test_the_shipped_studies_are_valid_and_name_a_plain_and_a_masked_arm(name: str) -> None:
    study = read_study(STUDIES / f"{name}.yaml").study
    assert study.name == name
    assert {"batchtopk", "positional"} < {arm.kind for arm in study.arms.values()}


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_study_is_valid_and_named_like_its_file(path: Path) -> None:
    study = read_study(path).study
    assert study.name == path.stem
    assert study.trainings()


def test_the_lab_notes_studies_have_every_run_that_trains_with_its_own_line() -> None:
    runs = ["run0", "run1", "run2", "run5", "run6"]
    story, literal = (read_study(STUDIES / f"{name}.yaml").study for name in ("lab-notes", "lab-notes-literal"))
    assert list(story.notes) == list(literal.notes) == list(literal.arms) == runs
    assert {arm.features for study in (story, literal) for arm in study.arms.values()} == {2304}
    assert {arm.model_dump()["sparsity"] for arm in literal.arms.values()} == {0.04}
    assert literal.training.learning_rate == 3e-4


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
        ("layer: 0", "layer: middle", "study.yaml:9: activations.low.layer: 'middle' names no place in a model: a number is the"),
        ("seeds: [0]", "seeds: [0, 0]", "study.yaml:25: seeds: a seed stands here twice, which would train the same dictionary twice"),
        ("seeds: [0]", "seeds: []", "study.yaml:25: seeds is empty: it needs at least one entry"),
        ("seeds: [0]", "threads: .inf", "study.yaml:25: the key 'threads' stands here a second time"),
        ("steps: 12", "steps: 12\n  warmup: .inf", "study.yaml:22: training.warmup is inf: input should be a finite number"),
        ("groups: 3", "groups: 16", "study.yaml: arms.positional does not fit activations.low: 16 groups cannot divide 16 positions"),
        ("layer: 2, ", "layer: 2, clock: sentense, ", "study.yaml:10: activations.high.clock: there is no clock 'sentense'; did you mean"),
        ("name: tiny", "name: 1790-01-08", "study.yaml:1: name is read as the date 1790-01-08, which is no text: put it in quotes"),
        ("    kind: standard\n    features: 48\n", "", "study.yaml:12: arms.standard is empty: it should be a mapping of keys to values"),
        ("seeds: [0]", "name: other", "study.yaml:25: the key 'name' stands here a second time (first in line 1)"),
        ("seeds: [0]", "seeds: [0", "study.yaml:26 is not valid YAML: "),
        ("seeds: [0]", "? [a]\n: 1", "study.yaml:25: a key must be a plain word"),
        ("steps: 12", "steps: true", "study.yaml:21: training.steps is True: "),
        ("steps: 12", 'steps: "12"', "study.yaml:21: training.steps is '12': input should be a valid integer"),
        ("seeds: [0]", "seeds: [010]", "study.yaml:25: YAML reads the number 010 as octal (a leading 0); write it plainly"),
        ("steps: 12", "steps: 1:20", "study.yaml:21: YAML reads the number 1:20 as in sixtieths (a colon); write it plainly"),
        ("seeds: [0]", "\ufeffseeds: [0]", "study.yaml:25: here is a byte-order mark, which nobody sees; remove it"),
        ("seeds: [0]", "seeds: [0x10]", "study.yaml:25: YAML reads the number 0x10 as hexadecimal (0x); write it plainly"),
        ("steps: 12", "steps: -0b11", "study.yaml:21: YAML reads the number -0b11 as binary (0b); write it plainly"),
        (
            "steps: 12",
            "steps: 12\n  learning_rate: 1_0e-5",
            "study.yaml:22: training.learning_rate is '1_0e-5': input should be a valid number; write 0.0001 without quotes and",
        ),
        ("layer: 2, ", "layer: 2.5, ", "study.yaml:10: activations.high.layer is 2.5: input should be a valid integer or input should be"),
        ("layer: 2, ", "hook: mlp, ", "study.yaml:10: activations.high: 'mlp' names no place in a model: a number is the"),
        ("layer: 2, ", "layer: 2, hook: mlp, ", "study.yaml:10: activations.high: hook 'mlp', layer 2: hook is the name of a place, or"),
        ("steps: 12", "steps: 12.5", "study.yaml:21: training.steps is 12.5: input should be a valid integer"),
        ("steps: 12", "steps: 1e300", "study.yaml:21: training.steps is 1e+300: input should be a valid integer"),
        ("seeds: [0]", f"seeds: [{2**63}]", f"study.yaml:25: seeds.0 is {2**63}: input should be less than {2**63}"),
        (
            "steps: 12",
            f"steps: {2**63}",
            "study.yaml:21: training.steps: a number of more than 64 bits counts nothing here; give a smaller",
        ),
        (
            "context_length: 16",
            f"context_length: {2**63}",
            f"study.yaml:6: scans.0.context_length is {2**63}: input should be less than or",
        ),
        (
            "arms:",
            f"  w: {{source: world, positions: {2**63}}}\narms:",
            "study.yaml:11: activations.w.positions: a number of more than 64 bits",
        ),
        ("steps: 12", "steps: 12\n  learning_rate: '1e-4'", "study.yaml:22: training.learning_rate is '1e-4': input should be a valid"),
        ("name: tiny", "name: 1e5", "study.yaml:1: name is read as 100000.0, which is no text: put it in quotes"),
        ("name: tiny", "name: off", "study.yaml:1: name is read as False, which is no text: put it in quotes"),
        ("  low: ", "  1e5: ", "study.yaml:9: the key 1e5 is read as a number, date or truth value: put it in quotes"),
        ("layer: 0", "layer: 0, loading: {device_map: auto, max_memory: {1.0: 1GiB}}", "study.yaml:9: the key 1.0 is read as a number"),
        ("layer: 0", "layer: 0, loading: {device_map: auto, max_memory: {-1: 1GiB}}", "study.yaml:9: activations.low.loading.max_memory"),
        ("layer: 0", "layer: 0, loading: {device_map: auto, max_memory: {0: 1}}", "study.yaml:9: activations.low.loading.max_memory"),
        ("layer: 0", "layer: 0, loading: {0: auto}", "study.yaml:9: the key 0 is read as a number, date or truth value"),
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
        ("seeds: [0]", "levels: {k: [2.5]}", "study.yaml: levels.k = 2.5 does not suit arms.positional: k is 2.5: input should be"),
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


@pytest.mark.parametrize("gpu", ["0", "'0'"])
def test_memory_is_given_to_gpus_by_their_numbers(write: Callable[..., Path], tmp_path: Path, gpu: str) -> None:
    path = write(("layer: 0", f"layer: 0, loading: {{device_map: auto, max_memory: {{{gpu}: 20GiB, cpu: 60GiB}}}}"))
    read = read_study(path)
    assert read.study.activations["low"].loading.max_memory == {0: "20GiB", "cpu": "60GiB"}
    write_copy(tmp_path / "copy.yaml", read_study(path, model="other").text)  # whose text is of JSON, which has no keys but words
    assert read_copy(tmp_path / "copy.yaml").study.activations["low"].loading == read.study.activations["low"].loading


@pytest.mark.parametrize(
    ("written", "read"),
    [("1e-4", 1e-4), ("1E-4", 1e-4), ("+1e-3", 1e-3), ("1.e-5", 1e-5), (".5e-3", 5e-4), ("1.0e-4", 1e-4), ("2", 2.0), ("0.001", 1e-3)],
)
def test_numbers_are_read_as_people_write_them(write: Callable[..., Path], written: str, read: float) -> None:
    study = read_study(write(("steps: 12", f"steps: 1_2\n  learning_rate: {written}"))).study
    assert (study.training.learning_rate, study.training.steps) == (read, 12)


def test_marks_at_the_start_are_no_part_of_a_study(write: Callable[..., Path]) -> None:
    path = write()
    plain = read_study(path)
    path.write_text("\ufeff\ufeff" + path.read_text("utf-8"), "utf-8")
    assert read_study(path) == plain


@pytest.mark.parametrize("written", ["1e3", "1.e3", "10E2", "1000.0", "1_000.", "+1000"])
def test_whole_floats_are_whole_numbers(write: Callable[..., Path], written: str) -> None:
    study = read_study(write(("steps: 12", f"steps: {written}"), ("seeds: [0]", "seeds: [0.0, 1e1]"))).study
    assert (study.training.steps, study.seeds) == (1000, (0, 10))
    assert type(study.training.steps) is int


def test_a_kept_study_whose_words_look_like_numbers_is_read_back(write: Callable[..., Path], tmp_path: Path) -> None:
    replaced = read_study(write(("name: tiny", "name: '1e5'")), model="another")
    kept = tmp_path / "kept.yaml"
    write_copy(kept, replaced.text)
    assert read_copy(kept).study == replaced.study
    assert replaced.study.name == "1e5"


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


# Stages


def stages(path: Path) -> dict[str, Stage]:
    study_file = read_study(path)
    return {stage.name: stage for stage in stages_of(study_file.study, study_file.text)}


def changed(before: dict[str, Stage], after: dict[str, Stage]) -> set[str]:
    return {name for name in before if after[name].fingerprint != before[name].fingerprint}


END = {"results", "figures", "report"}
PAIRED = {f"measure/paired/{store}" for store in ("low", "high")}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "k: 4",
            "k: 5",
            {f"{kind}/{store}/positional-seed0" for kind in ("train", "evaluate") for store in ("low", "high")} | PAIRED | END,
        ),
        (
            "layer: 2",
            "layer: 3",
            {"harvest/high", "measure/paired/high"}
            | {f"{kind}/high/{arm}-seed0" for kind in ("train", "evaluate") for arm in ("standard", "positional")}
            | END,
        ),
        ("sequences: 4", "sequences: 5", {"scan"} | END),
        ("seeds: [0]", "seeds: [0, 1]", PAIRED | END),
        ("name: tiny", "# a remark\nname: tiny", {"report"}),
    ],
)
def test_a_changed_setting_invalidates_just_what_depends_on_it(write: Callable[..., Path], old: str, new: str, expected: set[str]) -> None:
    before = stages(write())
    found = changed(before, stages(write((old, new))))
    assert {name if not name.startswith("scan/") else "scan" for name in found} == expected


def test_an_arm_that_learns_otherwise_than_before_is_trained_again_and_no_other(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = stages(write())
    monkeypatch.setattr(Positional, "version", Positional.version + 1)
    found = changed(before, stages(write()))
    assert found == {f"{kind}/{store}/positional-seed0" for kind in ("train", "evaluate") for store in ("low", "high")} | PAIRED | END


def test_changed_training_retrains_but_does_not_harvest(write: Callable[..., Path]) -> None:
    before = stages(write())
    found = changed(before, stages(write(("steps: 12", "steps: 13"))))
    assert {name.split("/")[0] for name in found} == {"train", "evaluate", "measure"} | END


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


def test_an_arm_that_reads_whole_rows_needs_such_batches_and_sections(write: Callable[..., Path]) -> None:
    arm = ("    kind: standard\n    features: 48\n", "    kind: tfa\n    features: 64\n    k: 4\n")
    rows, closing = ("  steps: 12\n", "  steps: 12\n  batches: rows\n"), ("seeds: [0]\n", "seeds: [0]\nevaluation: {closing: {}}\n")
    past = ("    kind: standard\n    features: 48\n", "    kind: standard\n    features: 48\n    expectation: {past: [previous]}\n")
    assert "arms.standard: arms of kind 'tfa' read whole rows of text: give training.batches: rows" in refusal(write(arm))
    changing = (closing[0], "seeds: [0]\nevaluation: {interventions: {}}\n")
    assert "evaluation.interventions changes codes alone: leave one of them out" in refusal(write(arm, rows, changing))
    for looking_back in ((arm, rows), (past,)):
        sentence = "arms.standard looks back at earlier rows, and evaluation.closing takes every row by itself: leave one of them out"
        assert sentence in refusal(write(*looking_back, closing))
    assert read_study(write(past, ("seeds: [0]\n", "seeds: [0]\nevaluation: {order: {}, probing: {}, sinks: {}}\n")))
    study = read_study(write(arm, rows))
    assert study.study.training.batches == "rows"
    assert "batches" not in read_study(write()).study.training.model_dump()
