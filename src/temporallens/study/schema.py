"""The JSON schema of a study file, from the models that read it: with it, editors complete keys, show what they mean, and check values.

What validators take beyond the types of the fields (another name of a setting, `source: model`) is added here, so that every study that
is read fits the schema. The other way round it says less than reading does: what depends on several keys is checked there alone.
"""

from collections.abc import Iterator
from typing import Any

from pydantic import AliasChoices

from temporallens.activations.language.harvest import HarvestPolicy
from temporallens.settings import Settings
from temporallens.study.config import Study

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def study_schema() -> dict[str, Any]:
    """The schema, as JSON values."""
    schema = Study.model_json_schema()
    for model in _below(Settings):
        if (definition := schema["$defs"].get(model.__name__)) is not None:
            _add_other_names(definition["properties"], model)
    harvest = schema["$defs"][HarvestPolicy.__name__]
    properties = harvest["properties"]
    properties["source"] = {
        "const": "model",
        "description": "Where activations come from; a language model by default.",
    }
    properties["hook"] = {"type": "string", "description": "In place of `layer`, or beside its number: a place in the model."}
    harvest["required"] = [key for key in harvest["required"] if key != "layer"]
    harvest["anyOf"] = [{"required": ["layer"]}, {"required": ["hook"]}]
    return {"$schema": DIALECT, **schema, "title": "A study of TemporalLens"}


def _below(model: type[Settings]) -> Iterator[type[Settings]]:
    for one in model.__subclasses__():
        yield one
        yield from _below(one)


def _add_other_names(properties: dict[str, Any], model: type[Settings]) -> None:
    """What settings are called beside the name that pydantic writes into the schema, which is the first."""
    for field in model.model_fields.values():
        if isinstance(field.validation_alias, AliasChoices):
            first, *others = map(str, field.validation_alias.choices)
            properties.update(dict.fromkeys(others, properties[first]))
