"""The formula at the head of each arm's file, written out densely, is what its dictionary computes in training and at inference."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from temporallens.dictionaries.base import ArmConfig, Dictionary
from temporallens.dictionaries.kinds import (
    TSAE,
    BatchTopK,
    Budgeted,
    JumpReLU,
    Matryoshka,
    Positional,
    PositionalReLU,
    PositionBias,
    PositionMean,
    PostHoc,
    RandomMask,
    Sliced,
    Standard,
    TopK,
)
from temporallens.dictionaries.steps import Progress

WIDTH, FEATURES, K, LENGTH, ROWS = 8, 24, 3, 16, 48
SIZE = {"features": FEATURES, "k": K}
LEARNING, HARD = Progress(50, 100), Progress(90, 100)
Formula = Callable[[Dictionary, Tensor, Tensor], Tensor]


def largest(codes: Tensor, k: int = K) -> Tensor:
    """The k N largest of N rows, 0 elsewhere."""
    return codes * (codes >= codes.flatten().sort(descending=True).values[k * len(codes) - 1])


def masked(d: Dictionary, gates: Tensor, pre: Tensor, positions: Tensor) -> Tensor:
    return largest(gates[d.groups(positions)] * pre.relu())


def soft(d: Dictionary, pre: Tensor, positions: Tensor) -> Tensor:
    return masked(d, (2 * torch.sigmoid(d.mask.logits / d.mask.temperature)).clamp(max=1), pre, positions)


def hard(d: Dictionary, pre: Tensor, positions: Tensor) -> Tensor:
    logits = d.mask.logits
    return masked(d, ((logits >= 0) | (logits == logits.amax(0))).float(), pre, positions)


def log_gate(d: Dictionary, pre: Tensor, positions: Tensor) -> Tensor:
    openness = logsigmoid(d.mask.logits / d.mask.temperature)
    return largest((pre + d.config.tau * (openness - openness.amax(0))[d.groups(positions)]).relu())


def relu_mask(d: Dictionary, pre: Tensor, positions: Tensor) -> Tensor:
    return torch.sigmoid(d.mask.logits / d.mask.temperature)[d.mask.groups(positions)] * pre.relu()


def of_each_position(d: Dictionary, pre: Tensor, positions: Tensor) -> Tensor:
    return torch.cat([largest(pre[positions == position].relu()) for position in positions.unique()])


def biased(d: Dictionary, pre: Tensor, positions: Tensor) -> Tensor:
    return largest((pre + d.position_bias[positions]).relu())


def of_batch(d: Dictionary, pre: Tensor, positions: Tensor) -> Tensor:
    return largest(pre.relu())


def of_row(d: Dictionary, pre: Tensor, positions: Tensor) -> Tensor:
    return pre.relu() * (pre >= pre.sort(1, descending=True).values[:, [K - 1]])


def fixed(d: Dictionary, pre: Tensor, positions: Tensor) -> Tensor:
    return masked(d, d.open.float(), pre, positions)


FORMULAS: dict[str, tuple[ArmConfig, Formula, Progress]] = {
    "standard": (Standard(features=FEATURES), lambda d, pre, positions: pre.relu(), LEARNING),
    "topk": (TopK(**SIZE), of_row, LEARNING),
    "batchtopk": (BatchTopK(**SIZE), of_batch, LEARNING),
    "jumprelu": (JumpReLU(features=FEATURES, l0=K), lambda d, pre, positions: pre * (pre > d.threshold), LEARNING),
    "matryoshka": (Matryoshka(**SIZE, levels=(0.25, 1)), of_batch, LEARNING),
    "tsae": (TSAE(**SIZE), of_batch, LEARNING),
    "budgeted": (Budgeted(**SIZE), of_each_position, LEARNING),
    "position_mean": (PositionMean(**SIZE), of_batch, LEARNING),
    "position_bias": (PositionBias(**SIZE), biased, LEARNING),
    "positional": (Positional(**SIZE, groups=4), soft, LEARNING),
    "positional, hard": (Positional(**SIZE, groups=4), hard, HARD),
    "positional, log": (Positional(**SIZE, groups=4, gate="log"), log_gate, LEARNING),
    "positional_relu": (PositionalReLU(features=FEATURES, groups=4), relu_mask, LEARNING),
    "sliced": (Sliced(**SIZE, groups=4), fixed, LEARNING),
    "posthoc": (PostHoc(**SIZE, groups=4), fixed, LEARNING),
    "random_mask": (RandomMask(**SIZE, groups=4, openness=0.5), fixed, LEARNING),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_the_formula_at_the_head_of_the_file_is_what_a_step_computes(name: str) -> None:
    arm, formula, progress = FORMULAS[name]
    generator = torch.Generator().manual_seed(0)
    d = arm.make(WIDTH, LENGTH, generator)
    for bias in (d.encoder_bias, d.decoder_bias):
        bias.data = 0.3 * torch.randn(bias.shape, generator=generator)
    if hasattr(d, "mask"):
        d.mask.logits.data.normal_(generator=generator)
    if hasattr(d, "position_bias"):
        d.position_bias.data.normal_(generator=generator)
    d.advance(progress)
    x, positions = torch.randn(ROWS, WIDTH, generator=generator), torch.arange(ROWS) * LENGTH // ROWS
    pre = (x - d.decoder_bias) @ d.encoder.T + d.encoder_bias
    with torch.no_grad():
        z = formula(d, pre, positions)
        torch.testing.assert_close(d.training_forward(x, positions).reconstruction, z @ d.decoder + d.decoder_bias)
        assert 0 < int((z > 0).sum()) < z.numel()
