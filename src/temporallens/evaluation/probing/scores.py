"""How well probes tell test texts apart: AUC and accuracy, with bootstrap resamples of the texts that all dictionaries share.

A resample draws as many texts of each class as there are, with replacement, and counts a text in every split and task in which it was
tested; resamples depend on the set and the seed alone. So resample number r of one dictionary stands beside number r of another, and
their differences have an interval of their own, narrower than that of either.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from temporallens.evaluation.probing.fitting import Tasks

ROWS_AT_ONCE = 1 << 22
"""Numbers in the largest array while scoring resamples."""


class Scored(NamedTuple):
    """Scores of B tasks, on the test texts and on R resamples of them."""

    auc: Float[Tensor, " B"]
    accuracy: Float[Tensor, " B"]
    auc_resampled: Float[Tensor, "B R"]
    accuracy_resampled: Float[Tensor, "B R"]


def resamples_of(labels: Sequence[str], draws: int, seed: int) -> Float[Tensor, "R T"]:
    """How often each text is in each resample; classes keep their sizes."""
    columns = np.array(labels)
    generator = np.random.default_rng(seed)
    counts = np.zeros((draws, len(columns)), dtype=np.float32)
    for name in dict.fromkeys(labels):
        rows = np.flatnonzero(columns == name)
        counts[:, rows] = generator.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=draws)
    return torch.from_numpy(counts)


def score_probes(score: Float[Tensor, "B m"], tasks: Tasks, resamples: Float[Tensor, "R T"]) -> Scored:
    """Score the logits `score` of the test texts; a logit above 0 says positive."""
    once = tasks.tested.float()
    size = max(1, ROWS_AT_ONCE // (len(resamples) * score.shape[1]))
    values, resampled = [], []
    for first in range(0, len(score), size):
        part = slice(first, first + size)
        weight = resamples[:, tasks.test[part]].transpose(0, 1) * once[part, None]
        logits, label = score[part], tasks.test_label[part]
        values.append((weighted_auc(logits, label, once[part, None]), _accuracy(logits, label, once[part, None])))
        resampled.append((weighted_auc(logits, label, weight), _accuracy(logits, label, weight)))
    auc, accuracy = (torch.cat(column)[:, 0] for column in zip(*values, strict=True))
    return Scored(auc, accuracy, *(torch.cat(column) for column in zip(*resampled, strict=True)))


def weighted_auc(score: Float[Tensor, "B m"], label: Bool[Tensor, "B m"], weight: Float[Tensor, "B R m"]) -> Float[Tensor, "B R"]:
    """Probability that a positive scores higher than a negative, ties counted half, where row i stands for `weight` rows, a whole number.

    NaN where there is no positive or no negative.
    """
    return torch.stack([_auc(*task) for task in zip(score, label, weight, strict=True)])


def _auc(score: Float[Tensor, " m"], label: Bool[Tensor, " m"], weight: Float[Tensor, "R m"]) -> Float[Tensor, " R"]:
    positive, negative = score[label], score[~label]
    of_positive, of_negative = weight[:, label], weight[:, ~label]
    beaten = torch.zeros_like(of_positive)  # whole and half numbers, so that their sums are exact in float32
    size = max(1, ROWS_AT_ONCE // max(1, len(positive)))
    for below, rows in zip(negative[:, None].split(size), of_negative.split(size, dim=1), strict=True):
        beaten += rows @ ((positive > below).float() + (positive == below).float() / 2)
    pairs = of_positive.sum(1, dtype=torch.float64) * of_negative.sum(1, dtype=torch.float64)
    return (of_positive.double() * beaten).sum(1) / pairs


def _accuracy(score: Float[Tensor, "B m"], label: Bool[Tensor, "B m"], weight: Float[Tensor, "B R m"]) -> Float[Tensor, "B R"]:
    right = ((score > 0) == label)[:, None]
    return (weight * right).sum(2).double() / weight.sum(2)
