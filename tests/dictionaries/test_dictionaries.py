"""Dictionaries: positions, masks, folding, saving."""

import json

import numpy as np
import pytest
import torch

from temporallens.dictionaries.arms.batchtopk import BatchTopK
from temporallens.dictionaries.arms.positional import Positional
from temporallens.dictionaries.arms.standard import Standard
from temporallens.dictionaries.kinds import ARMS
from temporallens.dictionaries.saving import load_dictionary, save_dictionary
from temporallens.dictionaries.steps import Dead
from temporallens.errors import TemporalLensError

POSITIONS, WIDTH = 16, 12


def built(arm, seed: int = 0):
    return arm.make(WIDTH, POSITIONS, torch.Generator().manual_seed(seed))


def test_a_closed_entry_neither_fires_nor_learns():
    dictionary = built(Positional(features=20, k=3, groups=4))
    dictionary.mask.logits.data[0, :10] = -1
    dictionary.mask.hard = True
    x, positions = torch.randn(40, WIDTH), torch.zeros(40, dtype=torch.long)
    assert not dictionary.encode(x, positions)[:, :10].any()
    dictionary.training_forward(x, positions).reconstruction.square().sum().backward()
    assert not dictionary.encoder.grad[:10].any()
    assert dictionary.encoder.grad[10:].any()


def test_auxk_reaches_the_encoder_of_dead_features_only():
    dictionary = built(BatchTopK(features=20, k=3))
    x = torch.randn(16, WIDTH)
    dead = Dead(torch.tensor([5, 6, 7, 8]), torch.tensor([1.0, 1.0, 1.0, 0.0]))
    dictionary.auxiliary(x, torch.ones(len(x), dtype=torch.int64), x, dead).sum().backward()
    assert dictionary.encoder.grad[5:8].abs().sum(1).all()
    assert dictionary.encoder_bias.grad[5:8].all()
    assert not dictionary.encoder.grad[:5].any()
    assert not dictionary.encoder.grad[8:].any()


def test_auxk_takes_the_largest_where_there_are_many():
    dictionary = built(BatchTopK(features=40, k=3))
    x = torch.randn(16, WIDTH)
    dead = Dead(torch.arange(30), torch.ones(30))
    pre = dictionary.pre_activations(x)[:, :30].relu()
    largest = pre * (pre >= pre.sort(1, descending=True).values[:, [WIDTH // 2 - 1]])
    expected = (x - largest @ dictionary.decoder[:30]).square().sum(1)
    torch.testing.assert_close(dictionary.auxiliary(x, torch.ones(len(x), dtype=torch.int64), x, dead), expected)


def test_auxk_gradient_agrees_with_finite_differences():
    dictionary = built(BatchTopK(features=6, k=2)).double()
    x, dead = torch.randn(5, WIDTH, dtype=torch.float64), Dead(torch.tensor([0, 2, 3, 5]), torch.ones(4, dtype=torch.float64))
    encoder = dictionary.encoder.detach().clone().requires_grad_()
    del dictionary._parameters["encoder"]

    def loss(changed: torch.Tensor) -> torch.Tensor:
        dictionary.encoder = changed
        return dictionary.auxiliary(x, torch.ones(len(x), dtype=torch.int64), x, dead).sum()

    assert torch.autograd.gradcheck(loss, (encoder,))


def test_sparse_codes_are_the_dense_ones():
    dictionary = built(Positional(features=64, k=3, groups=4))
    dictionary.mask.logits.data = torch.randn(4, 64)
    dictionary.mask.hard = True
    dictionary.threshold.fill_(0.7)
    x, positions = torch.randn(200, WIDTH), torch.randint(0, POSITIONS, (200,))
    gated = dictionary.pre_activations(x).relu() * dictionary.mask.gates()[dictionary.mask.groups(positions)]
    expected = (gated * (gated > 0.7)).detach()
    for order in (torch.arange(200), positions.argsort()):
        with torch.no_grad():
            found = dictionary.encode(x[order], positions[order])
        torch.testing.assert_close(found, expected[order], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(dictionary.encode(x, positions).detach(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arm", [Standard(features=20), BatchTopK(features=20, k=3), Positional(features=20, k=3, groups=4)])
def test_reconstruction_is_differentiable_in_activations_and_weights(arm):
    dictionary = built(arm)
    x = torch.randn(2, POSITIONS, WIDTH, requires_grad=True)
    dictionary(x).square().sum().backward()
    assert x.grad.abs().sum() > 0
    assert dictionary.encoder.grad.abs().sum() > 0


def test_the_decoder_gradient_loses_what_is_parallel_and_rows_stay_unit():
    dictionary = built(BatchTopK(features=20, k=3))
    dictionary.decoder.grad = torch.randn_like(dictionary.decoder)
    dictionary.remove_parallel_gradient()
    assert (dictionary.decoder.grad * dictionary.decoder).sum(1).abs().max() < 1e-5
    dictionary.decoder.data *= 3
    dictionary.normalise_decoder()
    torch.testing.assert_close(dictionary.decoder.norm(dim=1), torch.ones(20))


@pytest.mark.parametrize("arm", [Standard(features=20), BatchTopK(features=20, k=3), Positional(features=20, k=3, groups=4)])
def test_folding_moves_a_dictionary_into_raw_units(arm):
    dictionary, raw = built(arm), built(arm)
    centre, scale = torch.randn(WIDTH), 0.3
    for each in (dictionary, raw):
        each.encoder_bias.data.fill_(0.1)
        each.decoder_bias.data.fill_(0.2)
        if hasattr(each, "threshold"):
            each.threshold.fill_(0.4)
    raw.fold(centre, scale)
    x, positions = 5 * torch.randn(30, WIDTH) + centre, torch.arange(30) % POSITIONS
    inside = dictionary((x - centre) * scale, positions) / scale + centre
    torch.testing.assert_close(raw(x, positions), inside, rtol=1e-4, atol=1e-4)


def test_positions_of_sequences_are_implied_and_of_loose_rows_demanded():
    dictionary = built(Positional(features=20, k=3, groups="positions"))
    dictionary.mask.logits.data = torch.randn(POSITIONS, 20)
    x = torch.randn(2, POSITIONS, WIDTH)
    positions = torch.arange(POSITIONS).expand(2, -1)
    assert torch.equal(dictionary.encode(x), dictionary.encode(x, positions))
    with pytest.raises(TemporalLensError, match="needs the positions"):
        dictionary.encode(x[:, 3])
    dictionary.position_policy = 3
    torch.testing.assert_close(dictionary.encode(x[:, 3]), dictionary.encode(x)[:, 3])
    dictionary.position_policy = "mean"
    assert dictionary.encode(x[:, 3]).shape == (2, 20)
    with pytest.raises(TemporalLensError, match=r"positions of shape \(2, 3\) do not fit"):
        dictionary.encode(x, torch.zeros(2, 3))
    with pytest.raises(TemporalLensError, match="positions start at 0; the smallest of these is -1"):
        dictionary.encode(x, positions - 1)
    with pytest.raises(TemporalLensError, match="width 5 do not fit this dictionary of width 12"):
        dictionary.encode(torch.randn(2, 5), torch.zeros(2))


@pytest.mark.parametrize(
    "positions",
    [
        [1, 2],
        (1.0, 2),
        np.array([1, 2], ">i4"),
        np.array([1, 2], np.uint64),
        np.array([1, 2], np.float16),
        np.ma.masked_array([1, 2], mask=[0, 0]),
        torch.tensor([1, 2], dtype=torch.uint8),
        torch.tensor([1.0, 2.0], dtype=torch.bfloat16),
    ],
)
def test_positions_are_whole_numbers_of_any_type(positions):
    dictionary, x = built(Positional(features=20, k=3, groups="positions", centre="position")), torch.randn(2, WIDTH)
    dictionary.mask.logits.data, dictionary.position_offset = torch.randn(POSITIONS, 20), torch.randn(POSITIONS, WIDTH)
    assert torch.equal(dictionary.encode(x, positions), dictionary.encode(x, torch.tensor([1, 2])))
    assert torch.equal(dictionary(x, positions), dictionary(x, torch.tensor([1, 2])))


@pytest.mark.parametrize("arm", [BatchTopK(features=20, k=3), Positional(features=20, k=3, groups=4)])
@pytest.mark.parametrize(
    ("positions", "sentence"),
    [
        ([1.7, 2], "should be whole numbers; one of these is 1.7"),
        ([float("nan"), 1], "should be whole numbers; one of these is nan"),
        (torch.tensor([1.0, float("inf")]), "should be whole numbers; one of these is inf"),
        ([True, False], "should be whole numbers; these are a list that holds bool"),
        (torch.tensor([True, False]), "should be whole numbers; these are bool in a tensor"),
        (["a", "b"], "should be whole numbers; these are a list that holds"),
        ([[1], [2, 3]], "lists of different lengths"),
        ([1, -2], "positions start at 0; the smallest of these is -2"),
        ([1, 2, 3], r"positions of shape \(3,\) do not fit activations of shape \(2, 12\)"),
        (np.array([1 << 63, 1], np.uint64), "should be whole numbers; these are uint64 in an array"),
        (np.ma.masked_array([1, 2], mask=[0, 1]), "some of the positions are masked"),
    ],
)
def test_what_is_no_position_is_refused(arm, positions, sentence):
    with pytest.raises(TemporalLensError, match=sentence):
        built(arm).encode(torch.randn(2, WIDTH), positions)


@pytest.mark.parametrize("policy", [True, -1, 1.5, "median", [1, 2]])
def test_a_position_policy_that_is_none_is_refused(policy, folder):
    arm, x = Positional(features=20, k=3, groups=4), torch.randn(2, WIDTH)
    dictionary = built(arm)
    dictionary.position_policy = np.int64(3)
    assert torch.equal(dictionary.encode(x), dictionary.encode(x, [3, 3]))
    assert dictionary.encode(x[None, None]).shape == (1, 1, 2, 20)
    save_dictionary(dictionary, folder, arm, POSITIONS)
    assert load_dictionary(folder).position_policy == 3
    dictionary.position_policy = policy
    with pytest.raises(TemporalLensError, match="it should be a position"):
        dictionary.encode(x)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf"), 1e30])
@pytest.mark.parametrize("kind", ARMS)
def test_nan_and_infinity_are_errors_with_and_without_gradients(kind, wrong):
    given = {"features": 64, "k": 3, "l0": 3, "groups": 4}
    dictionary = built(ARMS[kind](**{name: value for name, value in given.items() if name in ARMS[kind].model_fields}))
    x, positions, codes = torch.randn(4, WIDTH), torch.arange(4), torch.zeros(4, 64)
    x[2, 3] = codes[1, 0] = wrong
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            for call in (dictionary.encode, dictionary, dictionary.ungated):
                with pytest.raises(TemporalLensError, match=r"the activations hold NaN or infinity.* in row 2"):
                    call(x, positions)
            with pytest.raises(TemporalLensError, match=r"the activations hold NaN or infinity.* in row 0, 2"):
                dictionary.encode(x[None])
            if not ARMS[kind].open_loop:
                with pytest.raises(TemporalLensError, match=r"the codes decode to NaN or infinity.* in row 1"):
                    dictionary.decode(codes, positions, torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize("arm", [Standard(features=20), BatchTopK(features=20, k=3), Positional(features=20, k=3, groups=4)])
def test_a_saved_dictionary_is_read_back_bit_for_bit(arm, folder):
    dictionary = built(arm)
    for parameter in dictionary.parameters():
        parameter.data = torch.randn_like(parameter)
    if hasattr(dictionary, "threshold"):
        dictionary.threshold.fill_(0.123)
    if hasattr(dictionary, "mask"):
        dictionary.mask.hard = True
        dictionary.mask.temperature.fill_(0.37)
    save_dictionary(dictionary, folder, arm, POSITIONS)
    back = load_dictionary(folder)
    assert back.state_dict().keys() == dictionary.state_dict().keys()
    for name, tensor in dictionary.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name
    x = torch.randn(3, POSITIONS, WIDTH)
    assert torch.equal(back.encode(x), dictionary.encode(x))
    layout = json.loads((folder / "cfg.json").read_text())
    assert (layout["d_in"], layout["d_sae"], layout["normalize_activations"]) == (WIDTH, 20, "none")
    assert layout["metadata"]["sae_lens_version"]


def test_the_saved_layout_computes_what_saelens_would(folder):
    from safetensors.numpy import load_file

    dictionary = built(BatchTopK(features=20, k=3))
    dictionary.encoder_bias.data.normal_()
    dictionary.decoder_bias.data.normal_()
    dictionary.threshold.fill_(0.5)
    save_dictionary(dictionary, folder, BatchTopK(features=20, k=3), POSITIONS)
    weights = load_file(folder / "sae_weights.safetensors")
    assert set(weights) == {"W_enc", "b_enc", "W_dec", "b_dec", "threshold"}
    x = np.random.default_rng(0).normal(size=(9, WIDTH)).astype(np.float32)
    pre = (x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
    codes = np.maximum(pre, 0) * (pre > weights["threshold"])
    np.testing.assert_allclose(dictionary(torch.from_numpy(x)).detach().numpy(), codes @ weights["W_dec"] + weights["b_dec"], atol=1e-5)


def rewrite(path, old, new):
    """What somebody else would write, without a checksum."""
    content = json.loads(path.read_text().replace(old, new))
    path.write_text(json.dumps({key: value for key, value in content.items() if key != "checksum"}))


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda f: (f / "cfg.json").unlink(), "does not exist"),
        (lambda f: (f / "cfg.json").write_text("{"), "not readable"),
        (lambda f: (f / "cfg.json").write_text("{}"), "not a dictionary that TemporalLens saved"),
        (lambda f: (f / "sae_weights.safetensors").write_bytes(b"\x80\x04junk"), "not readable"),
        (lambda f: (f / "cfg.json").write_text((f / "cfg.json").read_text().replace('"d_in": 12', '"d_in": 13')), "checksum"),
        (lambda f: rewrite(f / "cfg.json", '"d_in": 12', '"d_in": 13'), "should have shape"),
        (lambda f: rewrite(f / "cfg.json", '"batchtopk"', '"standard"'), "does not describe"),
    ],
)
def test_damaged_dictionaries_are_refused(folder, damage, sentence):
    arm = BatchTopK(features=20, k=3)
    save_dictionary(built(arm), folder, arm, POSITIONS)
    damage(folder)
    with pytest.raises(TemporalLensError, match=sentence):
        load_dictionary(folder)


@pytest.mark.parametrize(
    ("arm", "options", "sentence"),
    [
        (BatchTopK, {"features": 8, "k": 9}, "k = 9 codes per token cannot come from 8 features"),
        (Positional, {"temperature_start": 1.0, "temperature_end": 2.0}, "temperature_end = 2.0 is above"),
        (Positional, {"temperature_start": -1.0}, "greater than 0"),
        (Standard, {"sparsity": -0.1}, "greater than or equal to 0"),
        (Standard, {"k": 3}, "Standard has no setting .k"),
    ],
)
def test_arms_that_contradict_themselves_are_refused(arm, options, sentence):
    with pytest.raises(TemporalLensError, match=sentence):
        arm(**options)
