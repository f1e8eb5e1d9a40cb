"""`temporallens init`: the text of a first study of a model and layer, with a comment on everything that one would change."""

from pathlib import Path

import yaml

from temporallens.activations.language.hooks import layer_named
from temporallens.errors import TemporalLensError
from temporallens.evaluation.sections import Evaluation
from temporallens.files import write_text
from temporallens.layout import as_file_name
from temporallens.study.models import check_models, check_texts, model_sizes
from temporallens.study.reading import study_of
from temporallens.training.policy import TrainingPolicy

SECTIONS_ASKED = ("positions", "clusters", "features")
CONTEXT = 128
"""Tokens in a row, where the model has as many positions."""
STUDY = """\
# Where in the sequence do the features of {title} live? Three dictionaries on one layer, the same batches for all.
#     temporallens run {file} --dry-run    prints the plan and touches nothing
#     temporallens run {file}              does it; runs/{name}/report.html is the report
# What else can stand here: `temporallens list`, and for editors `temporallens schema > study.schema.json`.
name: {name}

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
    max_tokens: 150000 # without it, the whole text is read
    dtype: bfloat16 # of what is stored

arms: # the dictionaries to compare
  batchtopk: # knows nothing of position
    kind: batchtopk
    features: 2304
    k: 32 # codes per token
  position_mean: # loses the mean and the scale of its position first
    kind: position_mean
    features: 2304
    k: 32
  positional: # learns at which positions each feature is open
    kind: positional
    features: 2304
    k: 32
    groups: 8 # of positions, spaced along the logarithm, that a mask tells apart
    centre: position_scaled # masks come on top of what position_mean does

training: # the same for all arms
  steps: 500
  batch_size: 1024
  learning_rate: 0.002
  held_out: 0.1 # {held_out}

seeds: [0] # one seed supports no comparison; [0, 1, 2] give intervals

evaluation: # beyond reconstruction
{evaluation}"""


def starting_study(model: str, layer: int | str | None, text: str, out: Path) -> Path:
    """Write the study to `out`; the layer is the middle one where None is asked for and the model is at hand.

    Raises TemporalLensError where `out` is there already, and for a model, layer or text that is not.
    """
    if out.exists():
        raise TemporalLensError(f"{out} is there already, and init writes over nothing; choose another file with --out")
    sizes = model_sizes(model)
    if layer is None and sizes is None:
        raise TemporalLensError(f"how many layers '{model}' has is not known before it is fetched: give --layer")
    place = sizes.layers // 2 if layer is None and sizes else layer_named(str(layer))
    entry = as_file_name(f"{Path(model).name}-{place}")
    asked = [f"  {name}: {{}} # {_description(name)}" for name in SECTIONS_ASKED]
    content = STUDY.format(
        title=f"{Path(model).name}, {f'after block {place}' if isinstance(place, int) else f'at {place}'}",
        file=out,
        name=entry,
        entry=entry,
        model=_scalar(model),
        layer=_scalar(place),
        text=_scalar(text),
        context_length=min(CONTEXT, (sizes and sizes.context) or CONTEXT),
        held_out=_first_lower(TrainingPolicy.model_fields["held_out"].description),
        evaluation="\n".join(asked) + "\n",
    )
    study = study_of(content, f"the study of {model}").study
    check_models(study)
    check_texts(study)
    write_text(out, content)
    return out


def _description(section: str) -> str:
    return _first_lower(Evaluation.model_fields[section].description)


def _first_lower(sentence: str | None) -> str:
    words = (sentence or "").rstrip(".")
    return words[:1].lower() + words[1:]


def _scalar(value: object) -> str:
    """As YAML writes it in a line, in quotes where it needs them."""
    return yaml.safe_dump(value, allow_unicode=True, width=1 << 20, default_flow_style=True).removesuffix("\n").removesuffix("\n...")
