"""What a study can name, for `temporallens list`: every list with a line for each of its names, read from the code's own lists."""

import re
from collections.abc import Callable
from itertools import takewhile
from pathlib import Path

from temporallens.activations.clocks import CLOCKS
from temporallens.activations.expressions import EXPRESSIONS
from temporallens.activations.language.shipped import MODELS, TEXTS
from temporallens.dictionaries.kinds import ARMS
from temporallens.errors import TemporalLensError, did_you_mean
from temporallens.evaluation.sections import SECTIONS, Evaluation
from temporallens.study.shipped import shipped_studies


def _models() -> dict[str, str]:
    return {name: f"{model.title}, from the package {model.wheel.pin}" for name, model in MODELS.items()}


def _texts() -> dict[str, str]:
    return {name: f"{text.title}: {text.tokens:,} tokens in {text.documents} documents" for name, text in TEXTS.items()}


def _arms() -> dict[str, str]:
    return {kind: _first_sentence(arm.__doc__) for kind, arm in ARMS.items()}


def _clocks() -> dict[str, str]:
    by_expression = {name: _first_sentence(make.__doc__) for name, (_, make) in EXPRESSIONS.items()}
    return {name: clock.label for name, clock in CLOCKS.items()} | by_expression


def _sections() -> dict[str, str]:
    return {name: _first_sentence(Evaluation.model_fields[name].description) for name in SECTIONS}


def _studies() -> dict[str, str]:
    return {name: _first_sentence(_opening(path)) for name, path in shipped_studies().items()}


LISTS: dict[str, Callable[[], dict[str, str]]] = {
    "models": _models,
    "texts": _texts,
    "arms": _arms,
    "clocks": _clocks,
    "sections": _sections,
    "studies": _studies,
}


def catalogue(what: str | None = None) -> dict[str, dict[str, str]]:
    """Names with their lines, of one list or of all. Raises TemporalLensError for a list that is none."""
    if what is not None and what not in LISTS:
        raise TemporalLensError(f"there is no list of '{what}'{did_you_mean(what, LISTS)}")
    return {name: make() for name, make in LISTS.items() if what in (None, name)}


def _opening(path: Path) -> str:
    """The comment that a study opens with."""
    return " ".join(line.lstrip("# ") for line in takewhile(lambda line: line.startswith("#"), path.read_text("utf-8").splitlines()))


def _first_sentence(text: str | None) -> str:
    return re.split(r"\.(?:\s+(?=[A-Z])|$)", " ".join((text or "").split()), maxsplit=1)[0]
