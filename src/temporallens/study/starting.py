"""`temporallens init`: the text of a first study of a model's layer, or of a store of one's own, with a comment on everything that one
would change."""

import shlex
from pathlib import Path
from typing import NamedTuple

import numpy as np
import yaml

from temporallens.activations.language.hooks import layer_named
from temporallens.activations.manifest import names_store
from temporallens.activations.position_names import names_in
from temporallens.activations.store import ActivationStore
from temporallens.dictionaries.masks import Groups
from temporallens.errors import TemporalLensError
from temporallens.evaluation.positions.section import SECTION as POSITIONS, PositionsPolicy
from temporallens.evaluation.sections import Evaluation
from temporallens.files import user_path, write_text
from temporallens.layout import as_file_name
from temporallens.study.models import check_batches, check_models, check_texts, model_sizes
from temporallens.study.reading import study_of
from temporallens.training.policy import TrainingPolicy
from temporallens.wording import plain

SECTIONS_ASKED = ("positions", "clusters", "features")
TEXT = "sotu"
CONTEXT = 128
"""Tokens in a row, where the model has as many positions."""
FEATURES_EACH, LEAST_FEATURES = 4, 64
"""Features for every dimension of an activation, and at least."""
LEVELS, CODES_EACH = (24, 40), (1 / 16, 1 / 8)
"""Codes per token, at two levels; as a share of the width where that is less."""
UNKNOWN_WIDTH = 576
GROUPS = 8
FREE = 64
"""Positions of a user's own that each have a mask of their own, at most."""
SHARES, SPARE = (0.1, 0.2, 0.3, 0.5), 1.25
"""Shares of a small store's documents to hold out, and how many more than the least each position should have, as documents differ."""
LEAST_TOKENS = PositionsPolicy().least_tokens
LINE = 1 << 12
"""Characters of a path in a comment, which has to stay one line."""
BATCH, BATCHES = 1024, 4
"""Activations in a step, and how many steps they last for at least."""
STUDY = """\
# Where in the sequence do the features of {title} live? Three dictionaries on {where}, the same batches for all.
#     temporallens run {file} --dry-run    prints the plan and touches nothing
#     temporallens run {file}              does it; runs/{run}/report.html is the report
# What else can stand here: `temporallens list`, and for editors `temporallens schema > study.schema.json`.
name: {name}

{source}
arms: # the dictionaries to compare
  batchtopk: # knows nothing of position
    kind: batchtopk
    features: {features} # {features_why}
  position_mean: # loses the mean and the scale of its position first
    kind: position_mean
    features: {features}
  positional: # learns at which positions each feature is open
    kind: positional
    features: {features}
    groups: {groups} # {groups_why}
    centre: position_scaled # masks come on top of what position_mean does

levels: # each arm is trained at both, so that arms are compared where they use as many codes
  k: [{least}, {most}] # codes per {token}

training: # the same for all arms
  steps: 500
  batch_size: {batch}
  learning_rate: 0.002
  held_out: {share} # {held_out}

seeds: [0] # one seed supports no comparison; [0, 1, 2] give intervals

evaluation: # beyond reconstruction
{evaluation}"""
OF_MODEL = """\
scans:
  - model: {model} # where position lives in every layer, before any training
    text: {text}
    context_length: {context_length}
    sequences: 96 # rows that are read for it

activations:
  {entry}:
    model: {model} # a shipped name, a hub name, a directory, or a .gguf file
    layer: {layer} # the residual stream after this block, counted from 0; or the name of a hook
    text: {text} # a shipped text, a file or folder of texts, or a hub data set
    context_length: {context_length} # tokens in a row
    rows: split # documents are cut into rows
    max_tokens: 150000 # at most; without it, the whole text is read
    dtype: bfloat16 # of what is stored
"""
OF_STORE = """\
activations:
  {entry}:
    source: store
    path: {path} # what `temporallens import` or `tl.ActivationStore.from_arrays` made; `temporallens scan {typed}` scans it
"""


class Begun(NamedTuple):
    """What a first study depends on."""

    entry: str
    title: str
    where: str
    source: str  # the lines that say where activations come from
    token: str  # what a row consists of
    width: int
    batch: int
    groups: Groups
    groups_why: str
    share: float = TrainingPolicy.model_fields["held_out"].default  # of documents, held out
    by_position: bool = True  # whether a position has as many held-out activations as the section `positions` asks for


def starting_study(source: str, layer: int | str | None, text: str | None, out: Path) -> Path:
    """Write the study of a model's layer, or of a store, to `out`; the layer is the middle one where None is asked for and the model is
    at hand.

    Raises TemporalLensError where `out` is there already, and for a model, layer or text that is not.
    """
    if out.exists():
        raise TemporalLensError(f"{out} is there already, and init writes over nothing; choose another file with --out")
    if not names_store(source):
        begun = _of_model(source, layer, text or TEXT)
    elif layer is not None or text is not None:
        raise TemporalLensError(f"{source} is a store, which has its activations: leave out --layer and --text")
    else:
        begun = _of_store(source)
    content = _written(begun, out)
    study = study_of(content, f"the study of {source}").study
    check_models(study)
    check_texts(study)
    check_batches(study)
    write_text(out, content)
    return out


def _of_model(model: str, layer: int | str | None, text: str) -> Begun:
    sizes, name = model_sizes(model), Path(model).name
    if layer is None and sizes is None:
        raise TemporalLensError(f"how many layers '{model}' has is not known before it is fetched: give --layer")
    place = sizes.layers // 2 if layer is None and sizes else layer_named(str(layer))
    context = min(CONTEXT, (sizes and sizes.context) or CONTEXT)
    entry = as_file_name(f"{name}-{place}")
    source = OF_MODEL.format(
        entry=_scalar(entry),
        model=_scalar(model),
        layer=_scalar(place),
        text=_scalar(text),
        context_length=context,
    )
    groups = min(GROUPS, max(1, context - 1))
    why = "of positions, spaced along the logarithm, that a mask tells apart"
    title = f"{name}, {f'after block {place}' if isinstance(place, int) else f'at {place}'}"
    return Begun(entry, title, "one layer", source, "token", sizes.width if sizes else UNKNOWN_WIDTH, BATCH, groups, why)


def _of_store(path: str) -> Begun:
    store = ActivationStore(user_path(path))
    name = as_file_name(store.folder.resolve().name)
    policies = store.manifest.description.policies
    own = policies.get("clock") != "index" or names_in(policies)
    if own and store.positions <= FREE:
        groups: Groups = "positions"
        why = "a mask entry for each position; 8 would be groups spaced along the logarithm"
    else:
        groups, why = min(GROUPS, max(1, store.positions - 1)), "of positions, spaced along the logarithm; `positions` is one for each"
    batch = BATCH
    while batch > 16 and BATCHES * batch > store.rows:
        batch //= 2
    source = OF_STORE.format(entry=_scalar(name), path=_scalar(path), typed=_typed(path))
    share, by_position = _held_out(store)
    return Begun(name, path, "it", source, "activation", store.width, batch, groups, why, share, by_position)


def _held_out(store: ActivationStore) -> tuple[float, bool]:
    """The least share of documents that leaves a typical position enough held-out activations to be measured, and whether any has them."""
    count = np.asarray(store.manifest.per_position.count)
    typical = float(np.median(count[count > 0]))
    share = next((share for share in SHARES if share * typical >= SPARE * LEAST_TOKENS), SHARES[-1])
    return share, share * int(count.max()) >= SPARE * LEAST_TOKENS


def _written(begun: Begun, out: Path) -> str:
    features = max(LEAST_FEATURES, FEATURES_EACH * begun.width)
    least, most = (min(level, round(share * begun.width)) for level, share in zip(LEVELS, CODES_EACH, strict=True))
    few = {} if begun.by_position else {POSITIONS.name: f"# needs {LEAST_TOKENS} held-out activations at a position: "}
    asked = [f"  {few.get(name, '')}{name}: {{}} # {_description(name)}" for name in SECTIONS_ASKED]
    return STUDY.format(
        **begun._asdict() | {"name": _scalar(begun.entry), "title": plain(begun.title, LINE)},
        file=_typed(out),
        run=plain(begun.entry, LINE),
        features=features,
        features_why=f"{FEATURES_EACH} for each of {begun.width} dimensions" if features > LEAST_FEATURES else "more than dimensions",
        least=max(1, least),
        most=max(2, most),
        held_out=_first_lower(TrainingPolicy.model_fields["held_out"].description),
        evaluation="\n".join(asked) + "\n",
    )


def _description(section: str) -> str:
    return _first_lower(Evaluation.model_fields[section].description)


def _first_lower(sentence: str | None) -> str:
    words = (sentence or "").rstrip(".")
    return words[:1].lower() + words[1:]


def _typed(path: object) -> str:
    """A path in a comment, as a shell wants it."""
    return shlex.quote(plain(path, LINE))


def _scalar(value: object) -> str:
    """As YAML writes it in a line, in quotes where it needs them."""
    return yaml.safe_dump(value, allow_unicode=True, width=1 << 20, default_flow_style=True).removesuffix("\n").removesuffix("\n...")
