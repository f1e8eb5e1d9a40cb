"""Pooling gives what a loop over tokens gives, whatever the chunks, and leaves out what no headline number counts."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from temporallens.activations.context import in_sequences
from temporallens.dictionaries.arms.batchtopk import BatchTopK
from temporallens.dictionaries.arms.random_mask import RandomMask
from temporallens.dictionaries.arms.tfa import TFA
from temporallens.dictionaries.base import ArmConfig, Dictionary
from temporallens.dictionaries.expectations.policy import ExpectationPolicy
from temporallens.dictionaries.masks import group_of_position
from temporallens.errors import TemporalLensError
from temporallens.evaluation.model.passes import MappedActivations, TextActivations, text_activations
from temporallens.evaluation.probing import pooling
from temporallens.evaluation.probing.pooling import POOLINGS, Members, every_token, pool, pool_codes, pool_raw, single_tokens
from tiny_models import TEXTS, WIDTH, tiny_model

CONTEXT, BINS = 32, 4
BIN_OF = group_of_position(CONTEXT, BINS)


class Held(MappedActivations):
    """Activations that are in memory, of which an index reads what it names."""

    def __init__(self, x: torch.Tensor) -> None:
        self._x, self.shape, self.dtype = x, tuple(x.shape), x.dtype

    def __getitem__(self, index: object) -> torch.Tensor:
        return self._x[index]  # type: ignore[index]  # whatever a tensor takes


@pytest.fixture(scope="module")
def activations(tmp_path_factory: pytest.TempPathFactory) -> TextActivations:
    folder = tmp_path_factory.mktemp("pooling")
    model = str(tiny_model("llama", folder / "model"))
    return text_activations(model, 1, TEXTS, CONTEXT, cache=folder / "cache", padding_side="right", whole_context=False)


@pytest.fixture(scope="module", params=["batchtopk", "random_mask"])
def dictionary(request: pytest.FixtureRequest) -> Dictionary:
    arm = BatchTopK(features=48, k=4) if request.param == "batchtopk" else RandomMask(features=48, k=4, groups=4)
    made = arm.make(WIDTH, CONTEXT, torch.Generator().manual_seed(3)).eval()
    made.threshold.fill_(0.5)
    return made


def by_hand(codes: list[torch.Tensor], positions: list[torch.Tensor], name: str) -> np.ndarray:
    """Pool each item's own codes."""
    rows = []
    for own, position in zip(codes, positions, strict=True):
        if name == "bins":
            groups = BIN_OF[position]
            parts = [own[groups == number].double().mean(0) if bool((groups == number).any()) else own[0] * 0 for number in range(BINS)]
            rows.append(torch.cat(parts))
        else:
            rows.append({"mean": own.double().mean(0), "max": own.amax(0), "last": own[-1]}[name])
    return torch.stack([row.float() for row in rows]).numpy()


@pytest.mark.parametrize("chunk", [1, 7, 4096])
@pytest.mark.parametrize("name", POOLINGS)
def test_pooling_is_that_of_each_item_alone(
    name: str, chunk: int, dictionary: Dictionary, activations: TextActivations, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = every_token(activations)
    codes, positions = [], []
    for text in range(members.items):
        column = members.column[members.text == text]
        positions.append(activations.position[text, column])
        codes.append(dictionary.encode(activations.x[torch.full_like(column, text), column].float(), positions[-1]).detach())
    monkeypatch.setattr(pooling, "CHUNK_ROWS", chunk)
    found = pool_codes(dictionary, activations, members, [name], BIN_OF)  # type: ignore[list-item]  # a parameter is a str
    assert any(bool((own > 0).any()) for own in codes)
    np.testing.assert_allclose(found[name], by_hand(codes, positions, name), rtol=1e-5, atol=1e-6)  # type: ignore[index]


@settings(max_examples=30)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=8), st.integers(1, 9), st.integers(0, 99))
def test_any_lengths_and_chunks_give_the_same(lengths: list[int], chunk: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    live = torch.arange(max(lengths) + 1) <= torch.tensor(lengths)[:, None]
    live[:, 0] = False
    x = torch.randn(*live.shape, 3, generator=generator) * live[:, :, None]
    position = torch.arange(live.shape[1]).expand(live.shape)
    activations = TextActivations(Held(x), torch.zeros_like(live, dtype=torch.long), live, position, bos=True)
    text, column = live.nonzero(as_tuple=True)
    members = Members(text, column, text, len(lengths))
    own = [x[number, 1 : length + 1] for number, length in enumerate(lengths)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pooling, "CHUNK_ROWS", chunk)
        found = pool(activations, members, POOLINGS, BIN_OF, lambda rows, *_: rows, 3)
    for name in POOLINGS:
        expected = by_hand(own, [torch.arange(1, length + 1) for length in lengths], name)
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-6)


def test_position_zero_and_sinks_are_in_no_item(activations: TextActivations) -> None:
    members = every_token(activations)
    assert int(activations.position[members.text, members.column].min()) == 1
    x = activations.x[torch.arange(len(activations))].clone()
    x[1, 5] *= 1000
    sinking = TextActivations(Held(x), activations.token, activations.live, activations.position, activations.bos)
    kept = every_token(sinking)
    assert len(kept.text) == len(members.text) - 1
    assert not bool(((kept.text == 1) & (kept.column == 5)).any())


def test_a_text_of_sinks_alone_keeps_them(activations: TextActivations) -> None:
    x = activations.x[torch.arange(len(activations))].clone()
    x[1] *= 1000
    sinking = TextActivations(Held(x), activations.token, activations.live, activations.position, activations.bos)
    before, kept = every_token(activations), every_token(sinking)
    assert torch.equal(kept.text, before.text)
    assert torch.equal(kept.column, before.column)


def test_single_tokens_are_pooled_alone(activations: TextActivations) -> None:
    text, column = torch.tensor([2, 0, 0]), torch.tensor([4, 1, 9])
    found = pool_raw(activations, single_tokens(text, column), POOLINGS, BIN_OF)
    rows = activations.x[text, column].numpy()
    for name in ("mean", "max", "last"):
        np.testing.assert_array_equal(found[name], rows)
    binned = found["bins"].reshape(3, BINS, -1)
    for item, place in enumerate(BIN_OF[activations.position[text, column]].tolist()):
        np.testing.assert_array_equal(binned[item, place], rows[item])
        assert not np.delete(binned[item], place, axis=0).any()


def test_a_text_without_tokens_and_a_dictionary_for_another_width_are_refused(activations: TextActivations) -> None:
    live = activations.live.clone()
    live[3] = False
    empty = TextActivations(activations.x, activations.token, live, activations.position, activations.bos)
    with pytest.raises(TemporalLensError, match="text 3 of 5 has no token to pool"):
        every_token(empty)
    other = BatchTopK(features=16, k=2).make(WIDTH + 1, CONTEXT, torch.Generator())
    with pytest.raises(TemporalLensError, match=f"width {WIDTH + 1} is for another layer or model: activations have width {WIDTH}"):
        pool_codes(other, activations, every_token(activations), POOLINGS, BIN_OF)


def test_pooling_twice_gives_the_same_bits(dictionary: Dictionary, activations: TextActivations, tmp_path: Path) -> None:
    members = every_token(activations)
    first, second = (pool_codes(dictionary, activations, members, POOLINGS, BIN_OF) for _ in range(2))
    for name in POOLINGS:
        assert first[name].tobytes() == second[name].tobytes()


@pytest.mark.parametrize("chunk", [1, 64, 4096])
@pytest.mark.parametrize(
    "arm", [BatchTopK(features=48, k=4, expectation=ExpectationPolicy(token=None, past=("previous", "same_token"))), TFA(features=64, k=4)]
)
def test_what_looks_back_reads_whole_texts(
    arm: ArmConfig, chunk: int, activations: TextActivations, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = arm.make(WIDTH, CONTEXT, torch.Generator().manual_seed(3)).eval()
    if made.past_map is not None:
        made.past_map.copy_(0.2 * torch.randn(made.past_map.shape, generator=torch.Generator().manual_seed(0)))
        made.threshold.fill_(0.5)
    members = every_token(activations)
    alone = single_tokens(members.text[5::7], members.column[5::7])
    codes = []
    for text, column in zip(alone.text.tolist(), alone.column.tolist(), strict=True):
        x = activations.x[torch.full((column + 1,), text), torch.arange(column + 1)].float()[None]  # nothing behind the token matters
        token, live = activations.token[text, : column + 1], activations.live[text, : column + 1]
        context = in_sequences(token[None], torch.cat([torch.tensor([-1]), token[:-1]])[None], live[None])
        with torch.no_grad():
            codes.append(made.encode(x, torch.arange(column + 1)[None], context)[0, -1])
    monkeypatch.setattr(pooling, "CHUNK_ROWS", chunk)
    found = pool_codes(made, activations, alone, ["last"], BIN_OF)["last"]
    assert found.any()
    np.testing.assert_allclose(found, torch.stack(codes).numpy(), rtol=1e-4, atol=1e-5)
