"""Shares of a batch: what several processes get of it is the batch, once each."""

import pytest
import torch

from temporallens import processes
from temporallens.activations.loader import Loader
from temporallens.dictionaries.arms.batchtopk import BatchTopK
from temporallens.training.objective import Inputs
from temporallens.training.views import View, Views

PERMUTED = BatchTopK(features=8, k=2, permuted=True)


def views(store, arm: BatchTopK, monkeypatch: pytest.MonkeyPatch, shares: int, whole: bool) -> list[View]:
    """What each of so many processes sees of one batch."""
    inputs = Inputs(torch.zeros(store.width), 1.0)
    dictionary = arm.make(store.width, store.positions, torch.Generator())
    loader = Loader(store, store.split(0.25, 0).train, 129, 0, whole=whole)
    batch = next(loader)
    loader.close()
    found = []
    for rank in range(shares):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(processes, "count", lambda: shares)
        found.append(Views(batch, inputs, 0, 5).of(arm, dictionary))
    return found


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("arm", [BatchTopK(features=8, k=2), PERMUTED])
def test_every_row_is_of_one_process_with_its_label(store, monkeypatch, arm, whole):
    (alone,) = views(store, arm, monkeypatch, 1, whole)
    shares = views(store, arm, monkeypatch, 3, whole)
    both = [torch.cat([view.label[:, None], view.position[:, None], view.x], 1) for view in (alone, *shares)]
    assert torch.equal(torch.cat(both[1:]).unique(dim=0), both[0].unique(dim=0))
    assert sum(map(len, both[1:])) == len(both[0])
    for view in shares:
        assert (view.label.diff() >= 0).all()
        assert len(view.x) >= len(alone.x) // 4


def test_rows_of_text_stay_together(store, monkeypatch):
    for view in views(store, BatchTopK(features=8, k=2), monkeypatch, 2, whole=True):
        assert view.context is not None and view.context.before is not None
        follows = view.context.before >= 0
        assert torch.equal(view.position[follows], view.position[view.context.before[follows]] + 1)
        assert (~follows).sum() == len(view.x) - follows.sum() and follows.float().mean() > 0.9
