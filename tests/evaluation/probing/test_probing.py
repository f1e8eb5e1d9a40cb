"""Sparse probing: the numbers are those of SAEBench's protocol, written here a second time from its specification."""

import math
import random
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from temporallens.activations.context import Context
from temporallens.dictionaries.arms.batchtopk import BatchTopK
from temporallens.dictionaries.arms.positional import Positional
from temporallens.dictionaries.base import Dictionary
from temporallens.errors import TemporalLensError
from temporallens.evaluation.probing.lbfgs_logistic import fit_logistic, predict_logistic
from temporallens.evaluation.probing.saebench import DividedSet, SparseProbingPolicy, divide, padded_codes, sparse_probing
from temporallens.evaluation.texts.labelled import LabelledSet
from tiny_models import WIDTH, tiny_model

LAYER, CONTEXT, FEATURES = 2, 20, 48
WORDS = {
    "sea": ["water", "wave", "ship", "salt", "fish", "river"],
    "hill": ["rain", "road", "stone", "snow", "climb", "goat"],
    "town": ["people", "prices", "dollars", "talk", "house", "bridge"],
    "night": ["moon", "dark", "star", "sleep", "cold", "owl"],
}
POLICY = SparseProbingPolicy(
    probe_train_set_size=40, probe_test_set_size=18, context_length=CONTEXT, sae_batch_size=7, llm_batch_size=5, k_values=(1, 2, 5, 100)
)


def sentences(name: str, count: int, seed: int = 0, own: float = 0.6) -> list[str]:
    """Sentences of 1 to 30 words, a share of which only the class has; some have special tokens in their middle or, alone, before it."""
    generator = random.Random(f"{name}{seed}")
    others = [word for other, words in WORDS.items() if other != name for word in words]
    texts = []
    for _ in range(count):
        words = [generator.choice(WORDS[name] if generator.random() < own else others) for _ in range(generator.randint(1, 30))]
        if generator.random() < 0.2:
            words.insert(len(words) // 2, generator.choice(["</s>", "<s>", "<pad>"]))
        texts.append(" ".join(words))
    return texts


def labelled(name: str, classes: int, each: int = 29) -> LabelledSet:
    found = {label: sentences(label, each, seed=classes) for label in list(WORDS)[:classes]}
    return LabelledSet(name, [text for texts in found.values() for text in texts], [label for label in found for _ in found[label]])


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_model("llama", tmp_path_factory.mktemp("models") / "llama"))


def dictionary(kind: str = "batchtopk") -> Dictionary:
    """A dictionary with features that fire on some tokens and not on others."""
    generator = torch.Generator().manual_seed(3)
    if kind == "batchtopk":
        made = BatchTopK(features=FEATURES, k=4).make(WIDTH, CONTEXT, generator)
        made.threshold.fill_(0.5)
    else:
        made = Positional(features=FEATURES, k=4, groups=4).make(WIDTH, CONTEXT, generator)
        with torch.no_grad():
            next(parameter for name, parameter in made.named_parameters() if "mask" in name).normal_(std=3, generator=generator)
    return made.eval()


# The protocol, from its specification: one text at a time, nothing shared with what is tested.


def reference(made: Dictionary, folder: str, sets: list[DividedSet], policy: SparseProbingPolicy) -> dict[str, dict[str, dict[str, float]]]:
    dtype = getattr(torch, policy.llm_dtype)
    network = AutoModel.from_pretrained(folder, dtype=dtype)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    results: dict[str, dict[str, dict[str, float]]] = {}
    generator_state = torch.get_rng_state()
    torch.manual_seed(policy.random_seed)
    for one in sets:
        train, test = (
            {name: pooled(made, network, tokenizer, own, policy) for name, own in part.items()} for part in (one.train, one.test)
        )
        results[one.name] = {}
        for what in ("llm", "sae"):
            own_train, own_test = ({name: pair[what] for name, pair in part.items()} for part in (train, test))
            for k in (None, *policy.k_values):
                metric = f"{what}_test_accuracy" if k is None else f"{what}_top_{k}_test_accuracy"
                results[one.name][metric] = {name: probed(own_train, own_test, name, k) for name in own_train}
    torch.set_rng_state(generator_state)
    return results


@torch.no_grad()
def pooled(made: Dictionary, network: nn.Module, tokenizer: Any, texts: list[str], policy: SparseProbingPolicy) -> dict[str, Tensor]:
    """Mean of the residual stream and of the codes over the live tokens of each text."""
    streams, index = [], []
    for first in range(0, len(texts), policy.llm_batch_size):
        rows = [
            [1, *tokenizer(text, add_special_tokens=False).input_ids][:CONTEXT] for text in texts[first : first + policy.llm_batch_size]
        ]
        padding = [[0] * (CONTEXT - len(row)) for row in rows]
        left = policy.padding == "left"
        tokens = torch.tensor([pad + row if left else row + pad for row, pad in zip(rows, padding, strict=True)])
        index += [[max(0, place - left * len(pad)) for place in range(CONTEXT)] for pad in padding]
        arguments = {}
        if left:
            real = torch.tensor([[0] * len(pad) + [1] * len(row) for row, pad in zip(rows, padding, strict=True)])
            arguments = {"attention_mask": real, "position_ids": (real.cumsum(1) - 1).clamp(min=0)}
        stream = network(tokens, output_hidden_states=True, **arguments).hidden_states[LAYER + 1]
        streams.append(torch.where((tokens > 2)[..., None], stream, torch.zeros(())).to(stream.dtype))
    x, positions = torch.cat(streams), torch.tensor(index)
    means, codes = [], []
    for first in range(0, len(x), policy.sae_batch_size):
        part = x[first : first + policy.sae_batch_size]
        live = (part.sum(-1) != 0).to(part.dtype)
        z = made.encode(part, positions[first : first + len(part)]).to(part.dtype)
        means.append(part.sum(1) / live.sum(1, keepdim=True))
        codes.append((z * live[..., None]).sum(1) / live.sum(1, keepdim=True))
    return {"llm": torch.cat(means), "sae": torch.cat(codes)}


def probed(train: dict[str, Tensor], test: dict[str, Tensor], name: str, k: int | None) -> float:
    x, y = task(train, name)
    test_x, test_y = task(test, name)
    if k is not None:
        gap = (x[y == 1].mean(dim=0) - x[y == 0].mean(dim=0)).abs()
        mask = torch.zeros(x.shape[1], dtype=torch.bool)
        mask[torch.argsort(gap, descending=True)[:k]] = True
        probe = LogisticRegression(C=1.0, max_iter=1000).fit(x[:, mask].float().numpy(), y.numpy())
        return float(np.mean(probe.predict(test_x[:, mask].float().numpy()) == test_y.numpy()))
    linear = nn.Linear(x.shape[1], 1, dtype=x.dtype)
    optimizer = torch.optim.AdamW(linear.parameters(), lr=1e-2)
    accuracies: list[float] = []
    for _ in range(100):
        order = torch.randperm(len(x))
        for first in range(0, len(x), 250):
            own = order[first : first + 250]
            optimizer.zero_grad()
            nn.functional.binary_cross_entropy_with_logits(linear(x[own])[:, 0], y[own].to(x.dtype)).backward()
            optimizer.step()
        with torch.no_grad():
            accuracies.append(float(((linear(test_x)[:, 0] > 0).int() == test_y).float().mean()))
        if len(accuracies) - 1 - int(np.argmax(accuracies)) >= 10:
            break
    return max(accuracies)


def task(features: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    positive, others = features[name], [own for other, own in features.items() if other != name]
    each = math.ceil(len(positive) / len(others))
    negative = torch.cat([own[torch.randperm(len(own))[:each]] for own in others])
    negative = negative[torch.randperm(len(negative))[: len(positive)]]
    x, y = torch.cat([positive, negative]), torch.tensor([1] * len(positive) + [0] * len(negative), dtype=torch.int32)
    order = torch.randperm(len(x))
    return x[order], y[order]


@pytest.mark.parametrize(
    ("kind", "side", "dtype"),
    [
        ("batchtopk", "right", "float32"),
        ("positional", "right", "float32"),
        ("positional", "left", "float32"),
        ("positional", "right", "bfloat16"),
    ],
)
def test_numbers_are_those_of_the_protocol(llama: str, tmp_path: Path, kind: str, side: Any, dtype: Any) -> None:
    policy = POLICY.model_copy(update={"padding": side, "llm_dtype": dtype})
    sets = [labelled("three", 3), labelled("two", 2), labelled("four", 4)]
    made = dictionary(kind)
    found = sparse_probing(made, llama, LAYER, sets, policy, tmp_path)
    wanted = reference(made, llama, [divide(one, policy) for one in sets], policy)
    assert {name: {metric: dict(own) for metric, own in metrics.items()} for name, metrics in found.accuracies.items()} == wanted
    for metric, value in found.averages().items():
        means = [np.mean(list(wanted[name][metric].values())) for name in wanted]
        assert value == pytest.approx(np.mean(means), abs=1e-12)


def test_metrics_and_classes_stand_in_saebench_order(llama: str, tmp_path: Path) -> None:
    found = sparse_probing(dictionary(), llama, LAYER, [labelled("two", 2)], POLICY, tmp_path)
    tops = [f"top_{k}_" for k in POLICY.k_values]
    order = [
        "sae_test_accuracy",
        "llm_test_accuracy",
        *(f"llm_{top}test_accuracy" for top in tops),
        *(f"sae_{top}test_accuracy" for top in tops),
    ]
    assert list(found.accuracies["two"]) == order
    assert all(list(classes) == ["sea", "hill"] for classes in found.accuracies["two"].values())


def test_unequal_classes_are_probed_as_they_are(llama: str, tmp_path: Path) -> None:
    """Parts that a source fixes are not cut: 23, 30 and 27 texts to train on, 11, 12 and 13 to test on."""
    train = {"sea": sentences("sea", 23), "hill": sentences("hill", 30), "town": sentences("town", 27)}
    test = {"sea": sentences("sea", 11, 1), "hill": sentences("hill", 12, 1), "town": sentences("town", 13, 1)}
    one = DividedSet("uneven", train, test)
    found = sparse_probing(dictionary(), llama, LAYER, [one], POLICY, tmp_path)
    assert found.accuracies == reference(dictionary(), llama, [one], POLICY)


def test_the_callers_random_numbers_are_left_alone_and_results_do_not_hang_on_them(llama: str, tmp_path: Path) -> None:
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        results.append(sparse_probing(dictionary(), llama, LAYER, [labelled("two", 2)], POLICY, tmp_path).accuracies)
        assert torch.equal(torch.get_rng_state(), before)
    other = sparse_probing(dictionary(), llama, LAYER, [labelled("two", 2)], POLICY.model_copy(update={"random_seed": 7}), tmp_path)
    assert results[0] == results[1] != other.accuracies


def test_labels_that_mean_something_are_told_and_others_are_not(llama: str, tmp_path: Path) -> None:
    policy = POLICY.model_copy(update={"probe_train_set_size": 200, "probe_test_set_size": 200, "k_values": (20,)})
    texts = {name: sentences(name, 200, own=1.0) for name in ("sea", "hill")}
    flat = [text for own in texts.values() for text in own]
    told = sparse_probing(dictionary(), llama, LAYER, [LabelledSet("told", flat, ["a"] * 200 + ["b"] * 200)], policy, tmp_path)
    mixed = LabelledSet("mixed", flat, [random.Random(place).choice("ab") for place in range(400)])
    few = policy.model_copy(update={"probe_train_set_size": 180, "probe_test_set_size": 160})
    chance = sparse_probing(dictionary(), llama, LAYER, [mixed], few, tmp_path)
    assert told.averages()["sae_top_20_test_accuracy"] > 0.9
    assert abs(chance.averages()["sae_top_20_test_accuracy"] - 0.5) < 4 * 0.5 / math.sqrt(160)  # four standard errors of 160 texts


def test_division_follows_the_seed_and_keeps_what_the_source_fixes() -> None:
    one = labelled("three", 3)
    divided = divide(one, POLICY)
    again, other = divide(one, POLICY), divide(one, POLICY.model_copy(update={"random_seed": 1}))
    assert divided == again != other
    for name, own in one.by_class().items():
        assert len(divided.train[name]) == 20 and len(divided.test[name]) == 9
        assert sorted(divided.train[name] + divided.test[name]) == sorted(own)
    fixed = LabelledSet("fixed", ["a", "b", "c", "d"], ["x", "x", "y", "y"], parts=["train", "test", "test", "train"])
    assert divide(fixed, POLICY) == DividedSet("fixed", {"x": ["a"], "y": ["d"]}, {"x": ["b"], "y": ["c"]})


@pytest.mark.parametrize("kind", ["zero", "bias"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_constant_codes_are_an_error_and_not_one_half(llama: str, tmp_path: Path, kind: str, dtype: Any) -> None:
    made = dictionary()
    with torch.no_grad():
        made.encoder.zero_()
        made.encoder_bias.fill_(-1.0 if kind == "zero" else 0.7)
    with pytest.raises(TemporalLensError, match="the dictionary gives every text of 'two' the same codes"):
        sparse_probing(made, llama, LAYER, [labelled("two", 2)], POLICY.model_copy(update={"llm_dtype": dtype}), tmp_path)


def test_codes_see_their_positions_on_either_side_of_the_padding() -> None:
    made = dictionary("positional")
    x = torch.randn(1, 6, WIDTH, generator=torch.Generator().manual_seed(0))
    right, left = torch.zeros(1, 9, WIDTH), torch.zeros(1, 9, WIDTH)
    right[:, 1:7], left[:, 3:] = x, x  # BOS is zero in both
    untold = Context(torch.full((0,), -1), torch.full((0,), -1))  # no expectation asks for tokens
    wanted = made.encode(x, torch.arange(1, 7)[None])
    index = torch.arange(9)[None]
    assert torch.allclose(padded_codes(made, right, index, untold)[:, 1:7], wanted, atol=1e-6)
    assert torch.allclose(padded_codes(made, left, (index - 2).clamp(min=0), untold)[:, 3:], wanted, atol=1e-6)
    assert not torch.allclose(padded_codes(made, left, (index - 3).clamp(min=0), untold)[:, 3:], wanted, atol=1e-3)
    assert torch.isfinite(padded_codes(made, torch.zeros(2, 9, WIDTH), index.expand(2, -1), untold)).all()


def test_what_cannot_be_probed_is_refused_in_a_sentence(llama: str, tmp_path: Path) -> None:
    made, good = dictionary(), labelled("good", 2)

    def probe(*sets: LabelledSet | DividedSet, layer: int = LAYER, dictionary: Dictionary = made, **update: Any) -> None:
        sparse_probing(dictionary, llama, layer, sets, POLICY.model_copy(update=update), tmp_path)

    with pytest.raises(TemporalLensError, match="the list of labelled sets is empty"):
        probe()
    with pytest.raises(TemporalLensError, match="two labelled sets are called 'good'"):
        probe(good, good)
    with pytest.raises(TemporalLensError, match="class 'sea' of 'good' has 29 texts, and 2000 training and 9 test texts"):
        probe(good, probe_train_set_size=4000)
    with pytest.raises(TemporalLensError, match="'one' has one class only"):
        probe(DividedSet("one", {"a": ["x"]}, {"a": ["y"]}))
    with pytest.raises(TemporalLensError, match="class 'b' of 'part' has no test text"):
        probe(DividedSet("part", {"a": ["x"], "b": ["y"]}, {"a": ["x"], "b": []}))
    with pytest.raises(TemporalLensError, match="'part' has the classes a, b to train on and a, c to test on"):
        probe(DividedSet("part", {"a": ["x"], "b": ["y"]}, {"a": ["x"], "c": ["y"]}))
    with pytest.raises(TemporalLensError, match="class 'a' of 'uneven' has 5 training texts and the other classes have 1"):
        probe(DividedSet("uneven", {"a": ["x"] * 5, "b": ["y"]}, {"a": ["x"], "b": ["y"]}))
    with pytest.raises(TemporalLensError, match="layer 9 is out of range: llama has layers 0 to 3"):
        probe(good, layer=9)
    narrow = BatchTopK(features=8, k=2).make(WIDTH - 1, CONTEXT, torch.Generator())
    with pytest.raises(TemporalLensError, match="is for activations of width 31, the residual stream of llama has width 32"):
        probe(good, dictionary=narrow)
    with pytest.raises(TemporalLensError, match=r"empty, training texts of class 'a': text 0 .* hold no token"):
        probe(DividedSet("empty", {"a": ["<s>"], "b": ["y"]}, {"a": ["x"], "b": ["y"]}))


@pytest.mark.parametrize("k", [1, 3, 20])
def test_the_logistic_regression_is_scikit_learns_up_to_the_last_places(k: int) -> None:
    """They differ where NumPy 2 rounds and NumPy 1, which sae_bench runs on, does not; `make parity` compares them to the bit."""
    generator = np.random.default_rng(k)
    x = generator.normal(size=(200, k)).astype(np.float32)
    y = generator.random(200) < 1 / (1 + np.exp(-x @ generator.normal(size=k)))
    found = fit_logistic(x, y)
    wanted = LogisticRegression(C=1.0, max_iter=1000).fit(x, y.astype(np.int32))
    np.testing.assert_allclose(found, [*wanted.coef_[0], *wanted.intercept_], atol=5e-3)
    assert found.dtype == wanted.coef_.dtype == np.float32
    assert np.mean(predict_logistic(found, x) == (wanted.predict(x) == 1)) > 0.98
    logits = x.astype(np.float64) @ found[:-1] + found[-1]
    slopes = 1 / (1 + np.exp(-logits)) - y  # at the minimum of sum of log losses and half the squared norm of the weights
    np.testing.assert_allclose(np.append(x.T @ slopes + found[:-1], slopes.sum()) / len(x), 0, atol=2e-4)


@pytest.mark.parametrize("module", ["sklearn._loss", "sklearn.linear_model._linear_loss"])
def test_a_scikit_learn_without_these_private_losses_is_refused_with_the_versions_that_have_them(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text("utf-8"))["project"]
    declared = next(need for need in project["dependencies"] if need.startswith("scikit-learn"))
    with pytest.raises(TemporalLensError, match=rf"private losses of scikit-learn.* pip install '{re.escape(declared)}'"):
        fit_logistic(np.eye(2, dtype=np.float32), np.array([True, False]))


def test_a_scikit_learn_whose_private_losses_changed_is_refused_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.linear_model._linear_loss import LinearModelLoss

    monkeypatch.delattr(LinearModelLoss, "weight_intercept_raw")
    with pytest.raises(TemporalLensError, match=r"private losses of scikit-learn.*weight_intercept_raw"):
        fit_logistic(np.eye(2, dtype=np.float32), np.array([True, False]))
