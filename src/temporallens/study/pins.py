"""The hub data sets that a study reads, pinned: a run reads each at the commit that the hub had when the run first read it.

A data set may move on while a run is unfinished, or before it is looked at again. The run's folder therefore keeps, in `texts.json`,
the commit of every data set whose name in the study does not give one; with it the run stays what it is, requests nothing from the hub
again, and is known to be finished where there is no network. A name is `owner/name` or `owner/name:configuration`; pinned, `@commit`
follows.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from temporallens.activations.language.corpora import at_commit, is_moving
from temporallens.errors import TemporalLensError
from temporallens.files import read_json, write_json
from temporallens.study.config import Study

PINS_FILE = "texts.json"

Pins = Mapping[str, str]
"""By name in the study the name with its commit."""


def read_pins(folder: Path) -> Pins:
    """What a run's folder keeps; nothing where it keeps none."""
    path = folder / PINS_FILE
    if not path.exists():
        return {}
    remedy = "remove it to read the data sets as they are now"
    pins = read_json(path, "the commits of a run's data sets", remedy)
    if not all(isinstance(pinned, str) for pinned in pins.values()):
        raise TemporalLensError(f"{path} does not hold the commits of a run's data sets; {remedy}")
    return dict(pins)


def write_pins(folder: Path, pins: Pins) -> None:
    """Keep them, where there are any."""
    if pins:
        write_json(folder / PINS_FILE, dict(pins))


def new_pins(study: Study, pins: Pins) -> Pins:
    """The pins of a study: those there are, and the hub's commits of its other data sets. Those for which it gives none are left out."""
    commits = {text: at_commit(text) for text in sorted(texts_of(study) - pins.keys()) if is_moving(text)}
    return {**pins, **{text: pinned for text, pinned in commits.items() if pinned != text}}


def texts_of(study: Study) -> set[str]:
    """Every text that a study names."""
    order = study.evaluation.order
    texts = {policy.text for policy in study.scans} | {policy.text for policy in study.from_models().values()}
    return texts | ({order.text} if order else set())


def pinned_study(study: Study, pins: Pins) -> Study:
    """The study with the pinned names of its texts."""
    if not texts_of(study) & pins.keys():
        return study

    def pinned(policy: Any) -> Any:
        return policy.model_copy(update={"text": pins.get(policy.text, policy.text)})

    order = study.evaluation.order
    return study.model_copy(
        update={
            "scans": tuple(pinned(policy) for policy in study.scans),
            "activations": study.activations | {name: pinned(policy) for name, policy in study.from_models().items()},
            "evaluation": study.evaluation.model_copy(update={"order": order and pinned(order)}),
        }
    )
