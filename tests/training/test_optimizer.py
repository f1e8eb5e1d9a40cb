"""Adam by shares: what an undivided one learns up to rounding, a part of its memory, a checkpoint of any number of
processes."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from temporallens import processes
from temporallens.training.optimizer import Optimizer

SHAPES = ((7, 5), (7,), (3, 2, 2), ())
STEPS, RATE = 4, 0.01


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def gradients(step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1 + step)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def optimizer(learning: list[nn.Parameter]) -> Optimizer:
    return Optimizer([(learning[:2], 1.0), (learning[2:], 3.0)], RATE)


def learn(one: Optimizer, learning: list[nn.Parameter], steps: range) -> None:
    for step in steps:
        for parameter, gradient in zip(learning, gradients(step), strict=True):
            parameter.grad = gradient
        one.step(RATE / (1 + step))


def undivided(steps: int) -> list[Tensor]:
    learning = parameters()
    adam = torch.optim.Adam([{"params": learning[:2]}, {"params": learning[2:]}], lr=RATE, fused=True)
    for step in range(steps):
        for parameter, gradient in zip(learning, gradients(step), strict=True):
            parameter.grad = gradient
        for group, multiple in zip(adam.param_groups, (1.0, 3.0), strict=True):
            group["lr"] = RATE / (1 + step) * multiple
        adam.step()
    return [parameter.detach() for parameter in learning]


@contextmanager
def process(rank: int, count: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As one of several, which tell each other nothing."""
    with monkeypatch.context() as patch:
        patch.setattr(processes, "rank", lambda: rank)
        patch.setattr(processes, "count", lambda: count)
        yield


def test_alone_it_is_adam() -> None:
    learning = parameters()
    learn(optimizer(learning), learning, range(STEPS))
    assert all(torch.equal(mine, other) for mine, other in zip(learning, undivided(STEPS), strict=True))


@pytest.mark.parametrize("count", [2, 3])
def test_each_process_learns_its_rows_and_keeps_no_other_moments(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, kept = undivided(STEPS), 0
    for rank in range(count):
        with process(rank, count, monkeypatch):
            learning = parameters()
            mine = optimizer(learning)
            learn(mine, learning, range(STEPS))
            for parameter, other, before in zip(learning, expected, parameters(), strict=True):
                for owner, rows in enumerate(processes.shares(parameter.detach())):
                    right = other if owner == rank else before.detach()
                    torch.testing.assert_close(rows, processes.shares(right)[owner], rtol=1e-6, atol=1e-7)
            kept += mine.kept
    assert kept == 2 * sum(parameter.nbytes for parameter in parameters())


def test_a_checkpoint_of_one_process_is_taken_up_by_two(monkeypatch: pytest.MonkeyPatch) -> None:
    learning = parameters()
    before = optimizer(learning)
    learn(before, learning, range(2))
    saved = {name: tensor.clone() for name, tensor in before.tensors().items()}
    for rank in range(2):
        with process(rank, 2, monkeypatch):
            again = [nn.Parameter(parameter.detach().clone()) for parameter in learning]
            mine = optimizer(again)
            mine.restore({name: tensor.clone() for name, tensor in saved.items()})
            learn(mine, again, range(2, STEPS))
            for parameter, other in zip(again, undivided(STEPS), strict=True):
                torch.testing.assert_close(processes.our_rows(parameter.detach()), processes.our_rows(other), rtol=1e-6, atol=1e-7)
