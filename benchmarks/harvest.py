"""Harvesting against the bare forward pass: tokens per second of both, interleaved, and their ratio.

The bare pass runs the same truncated model over the same batches in the same dtype and keeps nothing. Harvesting adds reading the
text, the columns, the norm rule, the moments, and the store on the disk. Every round runs both, in turn; medians are compared.
"""

import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.timing import Section, Settings, interleaved
from temporallens.activations.language.corpora import open_corpus
from temporallens.activations.language.harvest import HarvestPolicy, TokenBatch, harvest_policy, schedule
from temporallens.activations.language.models import LanguageModel
from temporallens.activations.language.token_rows import row_shape, token_rows
from temporallens.errors import TemporalLensError

KEY = "harvest.vs_bare_forward"


def batches_of(model: LanguageModel, policy: HarvestPolicy) -> list[TokenBatch]:
    """The batches that the harvest of `policy` computes."""
    corpus = open_corpus(policy.text)
    shape = row_shape(model, policy.context_length, policy.bos, policy.rows)
    rows, tokens = [], 0
    for row in token_rows(model, corpus, shape, policy.rows, policy.rows_per_document):
        tokens += len(row.tokens)
        if policy.max_tokens is not None and tokens > policy.max_tokens:
            break
        rows.append(row)
    return list(schedule(rows, policy.batch_size, model.padding_token, left=False))


def bare_seconds(model: LanguageModel, batches: list[TokenBatch], layer: int) -> float:
    start = time.perf_counter()
    for batch in batches:
        model.residuals(batch.tokens, batch.mask, [layer])
    return time.perf_counter() - start


def harvest_seconds(policy: HarvestPolicy, out: Path) -> float:
    """The whole harvest, less its own loading of the model, which the bare pass does not count either."""
    loading, load = 0.0, LanguageModel.load

    def timed(*arguments: Any, **named: Any) -> LanguageModel:
        nonlocal loading
        start = time.perf_counter()
        model = load(*arguments, **named)
        loading += time.perf_counter() - start
        return model

    with patch.object(LanguageModel, "load", timed):
        start = time.perf_counter()
        harvest_policy([policy], [out])
        return time.perf_counter() - start - loading


def measure(settings: Settings) -> Section:
    """The harvest, from text to store, against the bare forward pass over the same batches."""
    policy = HarvestPolicy(
        model=settings.model,
        layer=settings.layer,
        text=settings.text,
        context_length=settings.context_length,
        max_tokens=settings.tokens,
        dtype="bfloat16",
        batch_size=32,
    )
    try:
        model = LanguageModel.load(policy.model, up_to=policy.layer, dtype=policy.precision)
        batches = batches_of(model, policy)
    except TemporalLensError as error:
        return Section("harvest", {KEY: None}, notes={KEY: str(error)})
    tokens = sum(batch.size for batch in batches)
    bare, whole = f"bare forward pass of {settings.model} to layer {settings.layer}", "harvest into a store"
    with tempfile.TemporaryDirectory() as folder:
        fresh = count()
        turns: dict[str, Callable[[int], float]] = {
            bare: lambda repeats: sum(bare_seconds(model, batches, settings.layer) for _ in range(repeats)),
            whole: lambda repeats: sum(harvest_seconds(policy, Path(folder) / str(next(fresh))) for _ in range(repeats)),
        }
        times = interleaved(turns, settings.rounds, settings.turn_seconds)
    return Section("harvest", {KEY: times.speed_ratio(whole, bare)}, times.seconds, dict.fromkeys(times.seconds, tokens))
