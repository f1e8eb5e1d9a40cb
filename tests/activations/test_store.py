"""The store: rows keep their place, interruptions cost nothing, damage is named."""

import hashlib
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from temporallens.activations.importing import read_array
from temporallens.activations.manifest import StoreDescription
from temporallens.activations.moments import FIRST, NORM
from temporallens.activations.store import ActivationStore
from temporallens.activations.writer import Rows, StoreWriter
from temporallens.errors import TemporalLensError, TemporalLensWarning
from temporallens.files import sha256, write_json

ONES = np.ones((4, 3, 2), np.float32)
DESCRIPTION = StoreDescription(source={"kind": "test"}, policies={"clock": "index"}, width=3, dtype="float32", positions=8)


def rows_of(sequence: int, length: int, width: int = 3) -> Rows:
    """A sequence whose every activation says where it is: [sequence, index, -index]."""
    index = torch.arange(length)
    x = torch.stack([torch.full((length,), float(sequence)), index.float(), -index.float()], 1)[:, :width]
    ids = torch.full((length,), sequence)
    return Rows(x, index, index, index, ids, ids // 2, index + 100, (index == 0).to(torch.uint8) * FIRST)


def content(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in sorted(folder.iterdir())}


@given(lengths=st.lists(st.integers(2, 8), min_size=2, max_size=12), shard_bytes=st.sampled_from([1, 60, 10_000]), seed=st.integers(0, 9))
@settings(max_examples=25)
def test_any_order_of_reading_gives_each_row_its_own_place(tmp_path_factory, lengths, shard_bytes, seed):
    writer = StoreWriter(tmp_path_factory.mktemp("any") / "store", DESCRIPTION, shard_bytes)
    for sequence, length in enumerate(lengths):
        writer.append(rows_of(sequence, length))
    store = ActivationStore(writer.finish())
    order = np.random.default_rng(seed).permutation(len(lengths))
    rows = store.read(order)
    assert rows.sequence.tolist() == [n for n in order for _ in range(lengths[n])]
    assert torch.equal(rows.x[:, 0].long(), rows.sequence)
    assert torch.equal(rows.x[:, 1].int(), rows.index)
    assert torch.equal(rows.token, rows.index.long() + 100)
    assert store.rows == sum(lengths)
    assert store.documents == (len(lengths) + 1) // 2


def test_an_interrupted_harvest_goes_on_and_ends_in_the_same_bytes(tmp_path):
    def write(writer: StoreWriter, until: int = 9) -> StoreWriter:
        for sequence in range(until):
            if sequence >= writer.appends_done:
                writer.append(rows_of(sequence, 5))
        return writer

    write(StoreWriter(tmp_path / "whole", DESCRIPTION, 100)).finish()
    write(StoreWriter(tmp_path / "cut", DESCRIPTION, 100), until=5)
    again = StoreWriter(tmp_path / "cut", DESCRIPTION, 100)
    assert 0 < again.appends_done <= 5
    write(again).finish()
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_an_unfinished_store_is_not_a_store_and_belongs_to_its_settings(tmp_path):
    writer = StoreWriter(tmp_path / "store", DESCRIPTION, 1)
    writer.append(rows_of(0, 4))
    with pytest.raises(TemporalLensError, match=r"not an activation store"):
        ActivationStore(tmp_path / "store")
    with pytest.raises(TemporalLensError, match=r"other settings"):
        StoreWriter(tmp_path / "store", DESCRIPTION.model_copy(update={"positions": 9}), 1)


def test_moments_are_those_of_the_kept_rows_and_counts_those_of_all(store, world):
    kept = world[:, 1:].astype(np.float64)
    moments = store.moments
    assert np.allclose(moments.mean[1:].numpy(), kept.mean(0), atol=1e-6)
    assert np.allclose(moments.second_moment[1:].numpy(), (kept**2).mean(0), atol=1e-6)
    assert np.isclose(float(moments.pooled_variance()), kept.reshape(-1, kept.shape[2]).var(0).sum())
    assert np.isclose(float(moments.within_variance()), kept.var(0).sum(1).mean())
    assert moments.count[0] == 0
    assert moments.excluded_first[0] == len(world)
    assert moments.all_norm[0] > 50 * moments.norm[1:].mean()
    part = store.moments_of(np.arange(store.sequences))
    assert torch.equal(part.count, moments.count)
    assert torch.allclose(part.mean, moments.mean)


def test_eta_squared_of_position_is_its_definition(store, world):
    kept = world[:, 1:].astype(np.float64)
    between = ((kept.mean(0) - kept.mean((0, 1))) ** 2).sum(1).mean()
    share, floor = store.moments.position_share()
    assert np.isclose(share, between / kept.reshape(-1, kept.shape[2]).var(0).sum())
    assert np.isclose(floor, (kept.shape[1] - 1) / (kept.shape[0] * kept.shape[1] - 1))


def test_no_document_is_on_both_sides_of_the_split(store):
    split = store.split(0.25, seed=3)
    documents = store.sequence_table.document
    assert not set(documents[split.train]) & set(documents[split.held_out])
    assert len(set(documents[split.held_out])) == 6
    assert sorted([*split.train, *split.held_out]) == list(range(store.sequences))
    assert store.split(0.25, seed=3).held_out.tolist() == split.held_out.tolist() != store.split(0.25, seed=4).held_out.tolist()


def test_sinks_are_marked_by_the_norm_rule_anywhere(tmp_path):
    x = np.random.default_rng(0).normal(size=(6, 10, 4)).astype(np.float32)
    x[2, 5] *= 1000
    store = ActivationStore.from_arrays(x, tmp_path / "store")
    rows = store.read(np.arange(6))
    assert ((rows.excluded & NORM) > 0).nonzero()[:, 0].tolist() == [2 * 10 + 5]
    assert store.moments.excluded_norm.tolist() == [0, 0, 0, 0, 0, 1, 0, 0, 0, 0]


def test_masks_tokens_and_documents_follow_their_rows(tmp_path):
    x = np.arange(2 * 3 * 2, dtype=np.float32).reshape(2, 3, 2)
    mask = np.array([[False, True, True], [True, True, True]])
    tokens = np.array([[0, 7, 8], [9, 10, 11]])
    store = ActivationStore.from_arrays(x, tmp_path / "store", mask=mask, tokens=tokens, documents=np.array([4, 5]))
    rows = store.read(np.arange(2))
    assert rows.token.tolist() == [7, 8, 9, 10, 11]
    assert rows.position.tolist() == [0, 1, 0, 1, 2]
    assert rows.document.tolist() == [4, 4, 5, 5, 5]
    assert torch.equal(rows.x, torch.from_numpy(x[mask]))


def test_a_hole_keeps_the_positions_of_what_follows_it(tmp_path):
    x = np.random.default_rng(0).normal(size=(3, 5, 2)).astype(np.float32)
    mask = np.ones((3, 5), bool)
    mask[0, 2], mask[1, :2], mask[2, [0, 3]] = False, False, False
    store = ActivationStore.from_arrays(x, tmp_path / "store", mask=mask)
    rows = store.read(np.arange(3))
    assert rows.position.tolist() == [0, 1, 3, 4, 0, 1, 2, 0, 1, 3]
    assert torch.equal(rows.index, rows.position)
    assert torch.equal(rows.document_position, rows.position)
    assert torch.equal(rows.x, torch.from_numpy(x[mask]))
    assert (rows.excluded & FIRST > 0).nonzero()[:, 0].tolist() == [0, 4, 7]
    assert store.manifest.description.policies["rows"] == "arrays, holes kept"


def test_arrays_without_holes_are_described_as_ever(tmp_path):
    x, mask, tokens = np.ones((2, 3, 2), ">f4"), np.array([[0, 1, 1], [1, 1, 0]]), np.arange(6).reshape(2, 3)
    description = ActivationStore.from_arrays(x, tmp_path / "store", mask=mask, tokens=tokens).manifest.description
    everything = b"".join(array.tobytes() for array in (x, mask, tokens, np.arange(2)))
    assert description.source["sha256"] == hashlib.sha256(everything).hexdigest()
    assert description.policies["rows"] == "arrays"


def test_what_is_masked_is_absent(tmp_path):
    x = np.random.default_rng(0).normal(size=(3, 5, 2)).astype(np.float32)
    hidden = np.zeros((3, 5), bool)
    hidden[0, 2] = hidden[1, 4] = True
    masked = np.ma.masked_array(np.where(hidden[..., None], np.nan, x), mask=np.repeat(hidden[..., None], 2, 2))
    rows = ActivationStore.from_arrays(masked, tmp_path / "x").read(np.arange(3))
    assert torch.equal(rows.x, torch.from_numpy(x[~hidden]))
    assert rows.position[:4].tolist() == [0, 1, 3, 4]
    given = np.ma.masked_array(np.ones((3, 5)), mask=hidden)
    assert torch.equal(ActivationStore.from_arrays(x, tmp_path / "mask", mask=given).read(np.arange(3)).position, rows.position)
    assert torch.equal(ActivationStore.from_arrays(list(masked), tmp_path / "list").read(np.arange(3)).x, rows.x)
    also = np.arange(5) < np.array([[5], [5], [3]])
    assert ActivationStore.from_arrays(masked, tmp_path / "both", mask=also).rows == 11
    tokens = np.ma.masked_array(np.arange(15).reshape(3, 5), mask=hidden)
    assert ActivationStore.from_arrays(x, tmp_path / "tokens", tokens=tokens).read(np.arange(3)).token[:5].tolist() == [0, 1, -1, 3, 4]


@pytest.mark.parametrize("kind", [">f4", ">f8", "<f8", ">f2", np.longdouble, "list", "mapped", "read-only", "reversed"])
def test_activations_of_any_layout_are_the_same_numbers(tmp_path, kind):
    x = np.random.default_rng(0).normal(size=(3, 4, 2)).astype(np.float16)
    np.save(tmp_path / "x.npy", np.asfortranarray(x))
    changed = {
        "list": lambda: x.astype(float).tolist(),
        "mapped": lambda: np.load(tmp_path / "x.npy", mmap_mode="r"),
        "read-only": lambda: np.lib.stride_tricks.as_strided(x, writeable=False),
        "reversed": lambda: x[::-1].copy()[::-1],
    }
    store = ActivationStore.from_arrays(changed[kind]() if kind in changed else x.astype(kind), tmp_path / "store")
    assert torch.equal(store.read(np.arange(3)).x, torch.from_numpy(x.astype(np.float32)).flatten(0, 1))


def test_companions_may_be_tensors_of_any_type(tmp_path):
    x, mask = torch.randn(3, 4, 2), torch.ones(3, 4)
    mask[1, 2] = 0
    wanted = ActivationStore.from_arrays(
        x, tmp_path / "plain", mask=mask.bool().numpy(), tokens=np.ones((3, 4), int), documents=np.arange(3)
    )
    companions = {"mask": mask.bfloat16(), "tokens": torch.ones(3, 4, dtype=torch.int32), "documents": torch.arange(3).byte()}
    store = ActivationStore.from_arrays(x.mT.contiguous().mT.requires_grad_(), tmp_path / "store", **companions)
    for found, expected in zip(store.read(np.arange(3)), wanted.read(np.arange(3)), strict=True):
        assert torch.equal(found, expected)


def test_a_norm_rule_without_a_typical_norm_says_so_and_leaves_nothing_out(tmp_path):
    generator = np.random.default_rng(0)
    x = generator.random((10, 20, 3)) * (generator.random((10, 20, 1)) < 0.3)
    with pytest.warns(TemporalLensWarning, match="more than half of the activations are 0, .* leaves none out"):
        store = ActivationStore.from_arrays(x, tmp_path / "store")
    assert store.moments.excluded_norm.sum() == 0
    assert store.moments.count.sum() == 190
    ActivationStore.from_arrays(np.where(x > 0.999, x, 0) * 0, tmp_path / "zeros")  # where all are 0 the rule would leave out none anyway


def test_activations_straight_from_a_network_are_stored(tmp_path, world):
    x = torch.from_numpy(world).requires_grad_()
    store = ActivationStore.from_arrays(x * 1, tmp_path / "store")
    assert torch.equal(store.read(np.arange(3)).x, x.detach()[:3].flatten(0, 1))


def test_bfloat16_holds_what_float16_would_lose(tmp_path):
    x = torch.full((3, 4, 2), 98_883.0, dtype=torch.bfloat16)
    store = ActivationStore.from_arrays(x, tmp_path / "store", norm_multiple=None)
    assert torch.isfinite(store.read(np.arange(3)).x).all()


@pytest.mark.parametrize(
    ("x", "options", "sentence"),
    [
        (np.zeros((4, 3), np.float32), {}, r"must have shape \[sequences, positions, width\]"),
        (np.zeros((4, 3, 2), np.int64), {}, "must be floating point"),
        (np.zeros((0, 3, 2), np.float32), {}, "activations must not be empty"),
        (np.full((4, 3, 2), np.nan, np.float32), {}, "NaN or infinity at sequence 0, index 0"),
        (np.ones((4, 3, 2), np.float32), {"tokens": np.zeros((4, 2))}, "tokens has shape"),
        (np.ones((4, 3, 2), np.float32), {"mask": np.eye(4)[:, :3]}, "sequence 3 is masked out"),
        (np.ones((4, 1, 2), np.float32), {}, "every row .* is excluded"),
        (np.ones((4, 3, 2), complex), {}, "must be floating point; this array holds complex128"),
        (torch.ones(4, 3, 2, device="meta"), {}, "has no values"),
        (torch.ones(4, 3, 2).to_sparse(), {}, "nested, sparse or quantised"),
        ({"x": np.ones((4, 3, 2))}, {}, "should be an array, and this is a dict: take one of its arrays"),
        ("x.npz", {}, "should be an array, and this is a str: read a file"),
        ([[[1.0]], [[1.0], [2.0]]], {}, "should be one array"),
        (np.ma.masked_array(ONES, mask=np.arange(24).reshape(4, 3, 2) == 9), {}, r"at \[1, 1\] is masked in 1 of 2 dimensions"),
        (ONES, {"mask": np.where(np.eye(4)[:, :3], np.nan, 1)}, r"mask at \[0, 0\] is nan: it should be 1"),
        (ONES, {"mask": np.eye(4)[:, :3] - 1}, r"mask at \[0, 1\] is -1.0: it should be 1"),
        (ONES, {"mask": np.full((4, 3), 2)}, r"mask at \[0, 0\] is 2: it should be 1"),
        (ONES, {"tokens": np.full((4, 3), 1 << 63, np.uint64)}, r"integers below 2\^63"),
        (ONES, {"documents": np.ma.masked_array(np.arange(4), mask=[0, 1, 0, 0])}, r"documents at \[1\] is masked"),
    ],
)
def test_arrays_that_cannot_be_stored_are_refused_with_the_reason(tmp_path, x, options, sentence):
    with pytest.raises(TemporalLensError, match=sentence):
        ActivationStore.from_arrays(x, tmp_path / "store", **options)
    assert not (tmp_path / "store").exists()


def test_arrays_that_turn_out_bad_late_leave_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("temporallens.activations.writer.StoreWriter", partial(StoreWriter, shard_bytes=1))
    monkeypatch.setattr("temporallens.activations.importing.CHUNK_BYTES", 1)
    x = np.ones((6, 3, 2), np.float32)
    x[5, 2, 1] = np.inf
    with pytest.raises(TemporalLensError, match="at sequence 5, index 2"):
        ActivationStore.from_arrays(x, tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_an_interrupted_import_goes_on_with_the_same_arrays_and_no_others(tmp_path, monkeypatch, world):
    append, done = StoreWriter.append, []

    def interrupted(writer, rows):
        done.append(len(done))
        if len(done) == 4:
            raise KeyboardInterrupt
        append(writer, rows)

    monkeypatch.setattr("temporallens.activations.importing.CHUNK_BYTES", 40 * world[0].nbytes)
    monkeypatch.setattr("temporallens.activations.writer.StoreWriter", partial(StoreWriter, shard_bytes=1))
    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "append", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ActivationStore.from_arrays(world, tmp_path / "cut")
    assert len(list((tmp_path / "cut").glob("shard-*"))) == 3
    with pytest.raises(TemporalLensError, match="unfinished harvest with other settings"):
        ActivationStore.from_arrays(world + 1, tmp_path / "cut")
    ActivationStore.from_arrays(world, tmp_path / "cut")
    ActivationStore.from_arrays(world, tmp_path / "whole")
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_arrays_are_read_from_the_three_formats_and_never_unpickled(tmp_path):
    from safetensors.numpy import save_file

    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", a=x, b=x + 1)
    save_file({"x": x}, tmp_path / "x.safetensors")
    assert np.array_equal(read_array(tmp_path / "x.npy"), x)
    assert np.array_equal(read_array(tmp_path / "x.npz", "b"), x + 1)
    assert np.array_equal(read_array(tmp_path / "x.safetensors"), x)
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(TemporalLensError, match="not readable"):
        read_array(tmp_path / "object.npy")
    with pytest.raises(TemporalLensError, match="holds 2 arrays"):
        read_array(tmp_path / "x.npz")
    with pytest.raises(TemporalLensError, match="does not exist"):
        read_array(tmp_path / "y.npy")


@pytest.mark.parametrize("damage", ["truncate", "flip", "version", "escape", "missing"])
def test_damage_is_named_before_content_is_used(store, tmp_path, damage):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(store.folder, copy)
    shard, manifest = copy / "shard-00000.safetensors", copy / "manifest.json"
    if damage == "truncate":
        shard.write_bytes(shard.read_bytes()[:-10])
    elif damage == "flip":
        data = bytearray(shard.read_bytes())
        data[-5] ^= 1
        shard.write_bytes(bytes(data))
    elif damage == "missing":
        shard.unlink()
    else:
        values = json.loads(manifest.read_text())
        del values["checksum"]
        if damage == "version":
            values["format"] = "temporallens.store/99"
        else:
            values["shards"][0]["file"] = "../../shard-00000.safetensors"
        write_json(manifest, values)  # a stranger's may have its checksum right
    sentences = {"truncate": "truncated", "flip": "checksum", "version": "store/99", "escape": "outside", "missing": "missing"}
    with pytest.raises(TemporalLensError, match=sentences[damage]) as caught:
        ActivationStore(copy).read(np.arange(3))
    assert str(caught.value).endswith(f"remove {copy} and run again") or damage == "escape"
