"""The JSON schema of a study: what is read fits it, and mistakes do not."""

from typing import Any

import jsonschema
import pytest
import yaml

from temporallens.dictionaries.kinds import ARMS
from temporallens.evaluation.sections import SECTIONS
from temporallens.study.reading import Loader
from temporallens.study.schema import study_schema
from temporallens.study.shipped import shipped_studies
from tiny_studies import LEVELED, VALID


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = study_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def content_of(text: str) -> Any:
    return yaml.load(text, Loader)  # noqa: S506 (a safe loader of our own)


@pytest.mark.parametrize("name", shipped_studies())
def test_every_shipped_study_fits(validator: Any, name: str) -> None:
    assert [error.message for error in validator.iter_errors(content_of(shipped_studies()[name].read_text("utf-8")))] == []


WITH_OTHER_WORDS = VALID.format(model="m", text="t").replace("layer: 0", "hook: blocks.0.hook_mlp_out, source: model, clock: {modulo: 4}")


@pytest.mark.parametrize(
    "text",
    [
        LEVELED,
        WITH_OTHER_WORDS,
        WITH_OTHER_WORDS.replace("clock: {modulo: 4}", "position_names: [a, b]"),
        WITH_OTHER_WORDS.replace("sequences: 4", "dtype: float32"),
        WITH_OTHER_WORDS + "evaluation: {bits: {clocks: [sentence, {since: x}]}}",
    ],
)
def test_what_validators_take_beyond_types_fits(validator: Any, text: str) -> None:
    assert [error.message for error in validator.iter_errors(content_of(text))] == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("steps: 12", "stepz: 12"),
        ("steps: 12", "steps: many"),
        ("steps: 12", "steps: 0"),
        ("kind: standard", "kind: ordinary"),
        ("layer: 0, ", ""),
        ("layer: 0", "layer: 0, source: modle"),
        ("name: tiny", "nom: tiny"),
        ("sequences: 4", "sequence: 4"),
    ],
)
def test_a_mistake_does_not_fit(validator: Any, old: str, new: str) -> None:
    text = VALID.format(model="m", text="t")
    assert old in text and validator.is_valid(content_of(text))
    assert not validator.is_valid(content_of(text.replace(old, new)))


def test_every_arm_and_section_is_in_it_with_a_word_on_its_settings() -> None:
    definitions = study_schema()["$defs"]
    for arm in ARMS.values():
        assert definitions[arm.__name__]["description"]
        described = {key for key, value in definitions[arm.__name__]["properties"].items() if value.get("description")}
        assert {"features", "centre"} <= described or not arm.trained
    sections = definitions["Evaluation"]["properties"]
    assert set(SECTIONS) < set(sections)
    assert all(sections[name]["description"] for name in SECTIONS)
