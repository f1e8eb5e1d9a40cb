"""The feature browser's data: every feature of each dictionary that is shown, packed for one page.

Rates by position are bytes in base64, each feature's on a scale of its own, and words are listed once: 4,608 features take a few
megabytes. The page reads them with its own script (`templates/browser.js`); text reaches it as text and never as markup.
"""

import base64
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

Content = Mapping[str, Any]
COLUMNS = ("information", "specialisation", "eta2", "q", "reliability")
"""Of the measured features of a dictionary, from its position metrics."""
LEVELS = 255
"""Steps of a byte."""


class Browsed(NamedTuple):
    """What is shown of one dictionary, as its measurements were written."""

    title: str
    features: Content  # `measures/features`
    positions: Content | None  # `measures/positions`
    clusters: Content | None  # `measures/clusters`
    tokens: Content | None = None  # `measures/tokens`
    names: Mapping[int, str] = MappingProxyType({})  # of positions that have one


def packed(browsed: Browsed) -> str:
    """JSON for a script element of the page: it holds no `<`, so that nothing in it can end the element."""
    table = browsed.features
    rate, low, high = (np.asarray(table[name], dtype=np.float64) for name in ("rate", "low", "high"))
    scale = np.maximum(np.maximum(rate.max(1), high.max(1)), 1e-12)
    words = {token: number for number, token in enumerate(table["words"])}
    content = {
        "title": browsed.title,
        "tokens": table["tokens"],
        "documents": table["documents"],
        "first": table["first"],
        "last": table["last"],
        "names": {str(position): name for position, name in browsed.names.items()},
        "binTokens": table["bin_tokens"],
        "firings": table["firings"],
        "mean": table["mean"],
        "scale": [float(f"{value:.4g}") for value in scale],
        "rate": _bytes(rate / scale[:, None]),
        "low": _bytes(low / scale[:, None]),
        "high": _bytes(high / scale[:, None]),
        "open": None if table["open"] is None else _bytes(np.asarray(table["open"], dtype=np.float64)),
        "columns": _columns(browsed, len(scale)),
        "words": list(table["words"].values()),
        "contexts": [[_context(context, words) for context in contexts] for contexts in table["contexts"]],
    }
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _bytes(shares: np.ndarray) -> str:
    return base64.b64encode(np.rint(np.clip(shares, 0, 1) * LEVELS).astype(np.uint8).tobytes()).decode("ascii")


def _context(context: Content, words: Mapping[str, int]) -> list[Any]:
    """Words (those without a text as their token's number, negative), index of the firing one, position, activation, sequence."""
    tokens = [words.get(str(token), -1 - token if token >= 0 else None) for token in context["tokens"]]
    return [tokens, context["place"], context["position"], context["activation"], context["sequence"]]


def _columns(browsed: Browsed, features: int) -> dict[str, list[float | None]]:
    """Columns with an entry for every feature, None where it was not measured; only those that there are."""
    found: dict[str, list[float | None]] = {}
    if browsed.positions is not None:
        measured = browsed.positions["features"]
        for name in COLUMNS:
            column: list[float | None] = [None] * features
            for feature, value in zip(measured["feature"], measured[name], strict=True):
                column[feature] = value
            found[name] = column
    if browsed.clusters is not None and browsed.clusters["clusters"] is not None:
        found["cluster"] = list(browsed.clusters["labels"])
    if browsed.tokens is not None:
        found |= {name: list(browsed.tokens[of]) for name, of in (("purity", "purities"), ("persistence", "persistences"))}
    return found
