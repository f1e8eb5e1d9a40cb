"""The model card of an exported dictionary: `README.md` with the front matter of the hub, figures of the run that measured it, and how
each library loads it.

Nothing is said that was not measured: of a dictionary that is in no finished run the card says so. FVE of an octave is pooled over its
tokens about the mean of each position, from what `results.json` holds by position: with the squared error e_p and `FVE_p = 1 - e_p / s_p`,
`FVE = 1 - sum e_p / sum s_p`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from temporallens.errors import TemporalLensError
from temporallens.evaluation.bins import octaves
from temporallens.evaluation.results import RunResult
from temporallens.wording import fixed, span

PICTURE = "by_position.png"
LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}")
HUB_MODEL = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
TITLES = {"saelens": "SAELens", "sparsify": "sparsify", "dictionary_learning": "dictionary_learning"}


class Card(NamedTuple):
    """What a card says beside what is in the dictionary's own files."""

    licence: str | None = None  # an identifier of the hub: `mit`, `apache-2.0`, `cc-by-4.0`
    repository: str | None = None  # `user/name`, where it goes to the hub
    measured: RunResult | None = None  # of the run that it belongs to
    picture: bool = False  # whether PICTURE stands beside the card


class Described(NamedTuple):
    """The dictionary."""

    facts: Mapping[str, Any]  # arm, features, width, model, layer, hook, context length, ...
    form: str  # of the files
    loading: str  # the code that loads them, `folder` being theirs
    others: Mapping[str, str]  # of each library that has another format: what to do, in a sentence
    remarks: Sequence[str] = ()  # whole paragraphs


class Octave(NamedTuple):
    """Tokens at positions `first` to `last` on held-out documents."""

    first: int
    last: int
    tokens: int
    fve: float | None  # about the mean of each position
    l0: float


def check_licence(licence: str | None) -> None:
    """Raise TemporalLensError for what is no identifier of a licence."""
    if licence is not None and not LICENCE.fullmatch(licence):
        raise TemporalLensError(f"the licence is '{licence}': it should be an identifier of the hub, such as mit, apache-2.0 or cc-by-4.0")


def by_octave(run: RunResult) -> list[Octave]:
    """FVE and L0 of a run by octave of the positions that it was measured at."""
    found = []
    for first, end in octaves(len(run.position_count), 0 if run.position_count[0] else 1):
        own = range(first, end)
        count = [run.position_count[p] for p in own]
        tokens = sum(count)
        if not tokens:
            continue
        errors = [(run.position_loss[p] or 0.0) * n for p, n in zip(own, count, strict=True)]
        pairs = [(error, run.position_fve[p]) for p, error in zip(own, errors, strict=True)]
        spread = sum(error / (1 - fve) for error, fve in pairs if fve is not None and fve < 1)
        fve = 1 - sum(error for error, fve in pairs if fve is not None and fve < 1) / spread if spread > 0 else None
        active = sum((run.position_l0[p] or 0.0) * n for p, n in zip(own, count, strict=True))
        found.append(Octave(first, end - 1, tokens, fve, active / tokens))
    return found


def written(card: Card, about: Described) -> str:
    """README.md."""
    parts = [_front_matter(card, about), _head(about), *about.remarks, _measured(card), _loading(card, about), _origin(card)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(card: Card, about: Described) -> str:
    model = about.facts.get("model")
    tags = ["sparse-autoencoder", "interpretability", "temporallens", about.form]
    content: dict[str, Any] = {"tags": tags, "library_name": about.form}
    if card.licence is not None:
        content["license"] = card.licence
    if isinstance(model, str) and HUB_MODEL.fullmatch(model):
        content["base_model"] = model
    return f"---\n{yaml.safe_dump(content, sort_keys=False, allow_unicode=True)}---"


def _head(about: Described) -> str:
    model, point = about.facts.get("model"), about.facts.get("hook")
    lines = [f"# A sparse autoencoder of {model or 'activations'} at {point or 'a point that was not recorded'}", ""]
    return "\n".join([*lines, *(f"- {name}: {value}" for name, value in about.facts.items() if value is not None)])


def _measured(card: Card) -> str:
    run = card.measured
    if run is None:
        return (
            "FVE and L0 were not measured: the dictionary was exported from a folder that belongs to no finished run of TemporalLens. "
            "`temporallens inspect` measures them."
        )
    lines = [
        f"On {run.held_out_tokens:,} tokens of held-out documents it has FVE {fixed(run.fve, 4)} (fraction of variance explained) at L0 "
        f"{fixed(run.l0, 1)} (codes in use per token); {run.dead_features:,} of its {run.features:,} features never fire there."
        + (" **FVE below 0 is worse than the mean activation would do: it says nothing of the model.**" if run.fve < 0 else ""),
        "",
        "| positions | tokens | FVE, about each position's mean | L0 |",
        "|---|---|---|---|",
        *(f"| {span(o.first, o.last)} | {o.tokens:,} | {fixed(o.fve, 4)} | {fixed(o.l0, 1)} |" for o in by_octave(run)),
    ]
    return "\n".join([*lines, *(["", f"![FVE and L0 by position]({PICTURE})"] if card.picture else [])])


def _loading(card: Card, about: Described) -> str:
    fetch = 'folder = "FOLDER"  # this one'
    if card.repository is not None:
        fetch = f'from huggingface_hub import snapshot_download\nfolder = snapshot_download("{card.repository}")'
    lines = ["## Load it", "", f"With {TITLES[about.form]}:", "", "```python", fetch, about.loading, "```", ""]
    name = card.repository or "FOLDER"
    lines += ["With TemporalLens:", "", "```python", "import temporallens as tl", f'sae = tl.load_dictionary("{name}")', "```"]
    for form, said in about.others.items():
        lines += ["", f"With {TITLES[form]}: {said}"]
    return "\n".join(lines)


def _origin(card: Card) -> str:
    licence = "No licence is given." if card.licence is None else f"Licence: {card.licence}."
    return f"{licence} Trained and exported with TemporalLens."
