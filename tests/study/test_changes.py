"""`--set`: settings that are changed on the command line, typed as in the file, kept in the run's copy, or refused in one sentence."""

from collections.abc import Callable
from pathlib import Path

import pytest

from temporallens.errors import TemporalLensError
from temporallens.study.changes import Change, changed
from temporallens.study.reading import read_copy, read_study, write_copy

Write = Callable[..., Path]


def test_changes_are_made_by_place_and_typed_as_in_the_file(write: Write) -> None:
    changes = [
        "training.steps=7",
        "training.learning_rate=1e-3",
        "seeds=[3, 4]",
        "arms.positional.k=2",
        "scans.0.sequences=5",
        "evaluation.features={}",
    ]
    study = read_study(write(), changes=changes).study
    assert (study.training.steps, study.training.learning_rate, study.seeds) == (7, 0.001, (3, 4))
    assert (study.arms["positional"].k, study.scans[0].sequences) == (2, 5)
    assert study.evaluation.features is not None
    plain = read_study(write()).study
    assert plain.training.model_copy(update={"steps": 7, "learning_rate": 0.001}) == study.training


def test_the_last_of_two_changes_of_one_key_holds(write: Write) -> None:
    assert read_study(write(), changes=["training.steps=7", "training.steps=8"]).study.training.steps == 8


def test_the_copy_of_a_run_says_what_was_changed_and_reads_as_the_same_study(write: Write, tmp_path: Path) -> None:
    study_file = read_study(write(), changes=["training.steps=7"])
    assert study_file.text.startswith("# Written by --set training.steps=7, over what stood in study.yaml.\n")
    copy = tmp_path / "run" / "study.yaml"
    write_copy(copy, study_file.text)
    assert read_copy(copy) == study_file
    assert read_copy(copy, changes=["training.steps=9"]).study.training.steps == 9


def test_changes_go_with_another_model(write: Write, sources: dict[str, Path]) -> None:
    study, text = read_study(write(), str(sources["model"]), ["training.steps=7"])
    assert study.training.steps == 7
    first, second, *_ = text.splitlines()
    assert first.startswith("# Written by --set training.steps=7") and second.startswith(f"# Written by --model {sources['model']}")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("training.stepz=7", "--set training.stepz=7: unknown key 'stepz' in training; did you mean 'steps'?"),
        ("trainin.steps=7", "--set trainin.steps=7: unknown key 'trainin'; did you mean 'training'?"),
        ("training.steps=many", "--set training.steps=many: training.steps is 'many': input should be a valid integer"),
        ("training.steps=0", "--set training.steps=0: training.steps is 0: input should be greater than or equal to 1"),
        ("training.steps", "--set training.steps: give a key and its value, such as training.steps=500"),
        ("training.steps= ", "--set training.steps= : give a key and its value, such as training.steps=500"),
        ("=3", "--set =3: give a key and its value, such as training.steps=500"),
        ("training.steps=[", "--set training.steps=[:1 is not valid YAML: "),
        ("training.steps=010", "--set training.steps=010:1: YAML reads the number 010 as octal"),
        ("training.steps.more=1", "--set training.steps.more=1: what stands before .more is 12, which holds nothing"),
        ("seeds.1=3", "--set seeds.1=3: '1' is no entry of a list whose entries are 0 to 0"),
        ("arms.other.k=3", "--set arms.other.k=3: arms.other needs the key 'kind', which says what arm it is"),
        ("arms.positional.groups=40", "--set arms.positional.groups=40: arms.positional does not fit activations.low: 40 groups"),
    ],
)
def test_what_cannot_be_changed_is_refused_in_one_sentence(write: Write, change: str, sentence: str) -> None:
    with pytest.raises(TemporalLensError) as error:
        read_study(write(), changes=[change])
    assert str(error.value).startswith(sentence)


def test_a_key_may_hold_dots() -> None:
    content = {"arms": {"a.b": {"k": 1}, "a": {"b": 2}}}
    made = changed(content, [Change("", "arms.a.b.k", 3), Change("", "arms.a.c", 4)])
    assert made == {"arms": {"a.b": {"k": 3}, "a": {"b": 2, "c": 4}}}
    assert content["arms"]["a.b"] == {"k": 1}
