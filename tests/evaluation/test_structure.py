"""The share of a covariance's structure that depends on position, of rows whose covariances are chosen."""

import numpy as np
import pytest
import torch

from temporallens.evaluation.structure import GROUPS, drawn, structure_share

WIDTH = 24


def rows(spread: np.ndarray, count: int, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """Rows of which those at position p vary by `spread[p]` along each axis, about a mean of their own."""
    generator = np.random.default_rng(seed)
    position = np.repeat(np.arange(len(spread)), count)
    x = generator.normal(size=(len(position), spread.shape[1])) * spread[position]
    return torch.from_numpy(x + 5 * generator.normal(size=spread.shape)[position]).float(), position


def disjoint(positions: int, own: int = 2) -> np.ndarray:
    spread = np.zeros((positions, positions * own))
    for position in range(positions):
        spread[position, position * own : (position + 1) * own] = 1
    return spread


def test_positions_that_vary_alike_share_all_of_it_whatever_their_means() -> None:
    share = structure_share(*rows(np.tile(np.linspace(1, 3, WIDTH), (8, 1)), 200))
    assert share == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("positions", [2, 5, 12])
def test_positions_that_share_no_direction_leave_what_chance_has_in_common(positions: int) -> None:
    share = structure_share(*rows(disjoint(positions), 100))
    assert share == pytest.approx(1 - 1 / positions, abs=0.01)


def test_scale_by_position_is_no_structure() -> None:
    spread = np.linspace(1, 2, WIDTH) * np.array([[1.0], [10.0], [100.0]])
    assert structure_share(*rows(spread, 400)) == pytest.approx(0, abs=0.01)


def test_half_of_the_variance_gives_what_is_worked_out_here() -> None:
    spread = np.concatenate([np.ones((4, 8)), disjoint(4)], axis=1)
    x, position = rows(spread, 20_000)
    u = torch.nn.functional.normalize(
        x - torch.stack([x[position == one].mean(0) for one in range(4)])[torch.from_numpy(position)], dim=1
    ).double()
    own = [u[position == one].T @ u[position == one] / 20_000 for one in range(4)]
    expected = 1 - float(torch.stack(own).mean(0).square().sum() / torch.stack([one.square().sum() for one in own]).mean())
    assert structure_share(x, position) == pytest.approx(expected, abs=5e-4)
    assert 0.1 < expected < 0.5


def test_permuted_positions_have_none_and_many_positions_are_grouped() -> None:
    x, position = rows(disjoint(2).repeat(64, axis=0), 20)
    assert len(np.unique(position)) > 2 * GROUPS
    share, floor = structure_share(x, position), structure_share(x, np.random.default_rng(1).permutation(position))
    assert share is not None and share > 0.05
    assert floor == pytest.approx(0, abs=0.02)


def test_what_cannot_be_compared_is_not_known() -> None:
    x, position = rows(disjoint(3), 10)
    assert structure_share(x, np.zeros_like(position)) is None
    assert structure_share(torch.zeros_like(x), position) is None
    alone = np.append(position, 99)
    assert structure_share(torch.cat([x, x[:1] + 1]), alone) == structure_share(x, position)


def test_rows_are_drawn_from_everywhere_and_the_same_each_time() -> None:
    chosen = drawn(41 * 8192, 0)
    assert len(chosen) == 8192 == len(np.unique(chosen)) and np.array_equal(chosen, drawn(41 * 8192, 0))
    assert np.bincount(chosen % 41).min() > 100
    assert np.array_equal(drawn(7, 0), np.arange(7))
