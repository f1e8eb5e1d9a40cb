"""What a dictionary's reconstructions cost beside its codes: numbers that were learned, arithmetic, and everything that is decoded.

Two dictionaries of equal L0 may differ in all three: one that predicts a part of the activation from others multiplies more of its decoder
than its codes say, with more weights. Arithmetic is counted while rows are reconstructed: two operations for each multiplication and
addition in a product of matrices, be the matrix of codes sparse or not.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from pydantic import Field
from torch.utils.flop_counter import FlopCounterMode

from temporallens.activations.context import context_of
from temporallens.activations.language.token_rows import evenly_spaced
from temporallens.activations.loader import sequential
from temporallens.activations.store import ActivationStore
from temporallens.dictionaries.base import Dictionary
from temporallens.errors import TemporalLensError
from temporallens.evaluation.section import Section, Subject
from temporallens.settings import Settings
from temporallens.wording import Row, Table, fixed


class CostPolicy(Settings):
    """The `cost` section of a study's evaluation."""

    sequences: int = Field(64, ge=1)
    """Held-out sequences at most, evenly spaced."""


class CostMeasures(NamedTuple):
    """What one dictionary costs."""

    parameters: int  # numbers that were learned or fitted, tables of tokens and maps of the past among them
    flops: float  # per token, for codes and reconstruction
    l0: float  # codes in use per token
    total_l0: float  # rows of the decoder in use per token, those that an open loop predicts among them
    open_loop: bool  # whether reconstructions need activations beside codes, tokens and positions
    tokens: int  # over which L0 is a mean: kept ones


@torch.inference_mode()
def measure_cost(dictionary: Dictionary, store: ActivationStore, held_out: Int[np.ndarray, " n"], policy: CostPolicy) -> CostMeasures:
    """Reconstruct some held-out sequences and count. Raises TemporalLensError where they have no usable row."""
    chosen = held_out[list(evenly_spaced(len(held_out), policy.sequences))]
    flops = rows_read = tokens = active = total = 0
    for rows in sequential(store, chosen):
        x, position, context, kept = rows.x.float(), rows.position.long(), context_of(rows), rows.excluded == 0
        with FlopCounterMode(display=False) as counter:
            codes = dictionary.reconstructed(x, position, context).codes
        flops += counter.get_total_flops()
        rows_read += len(x)
        tokens += int(kept.sum())
        active += int((codes[kept] > 0).sum())
        total += int((dictionary.all_codes(x, position, context)[kept] != 0).sum())
    if not tokens:
        raise TemporalLensError(f"the held-out documents of {store.folder} hold no usable row: no codes can be counted")
    return CostMeasures(learned(dictionary), flops / rows_read, active / tokens, total / tokens, dictionary.config.open_loop, tokens)


def learned(dictionary: Dictionary) -> int:
    """Numbers of a dictionary that were learned or fitted."""
    count = sum(parameter.numel() for parameter in dictionary.parameters() if parameter.requires_grad)
    known = dictionary.expectation
    tables = [] if known is None else [known.token, known.previous, known.pair]
    return count + sum(table.numel() for table in (*tables, dictionary.past_map) if table is not None)


def _of_subject(subject: Subject, policy: CostPolicy) -> CostMeasures:
    return measure_cost(subject.dictionary, subject.store, subject.held_out, policy)


def tables(found: Mapping[str, CostMeasures]) -> list[Table]:
    """One row per dictionary."""
    rows = [
        Row(head, [f"{cost.parameters:,}", fixed(cost.flops / 1e6, 2), fixed(cost.l0, 1), fixed(cost.total_l0, 1)])
        for head, cost in found.items()
    ]
    note = (
        "Parameters are numbers that were learned or fitted. Operations are those of matrix products, for codes and reconstruction. In an "
        "open loop reconstructions need true activations of the row beside codes: total L0 counts what is predicted from them, too."
    )
    return [Table("Cost", ["dictionary", "parameters", "million operations per token", "L0", "total L0"], rows, note)]


SECTION = Section(name="cost", policy=CostPolicy, version=1, measure=_of_subject, measures=CostMeasures, tables=tables)
"""Cost: parameters, arithmetic, and everything that is decoded."""
