"""Splicing: nothing changes when nothing is changed, ablation is what a hand-written hook does, and what cannot be said is not said."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM

from headed_models import headed_model, identity, random_dictionary, store_of
from temporallens.activations.language.models import LanguageModel
from temporallens.activations.store import ActivationStore
from temporallens.dictionaries.expectations.policy import ExpectationPolicy
from temporallens.dictionaries.kinds import BatchTopK
from temporallens.errors import TemporalLensError
from temporallens.evaluation.model.splicing import SECTION, Means, SplicingMeasures, SplicingPolicy, _measured, measure_splicing, tables
from temporallens.serial import as_json
from temporallens.training.trainer import train
from tiny_models import FAMILIES, LAYERS, tiny_model

LAYER = 1
POLICY = SplicingPolicy(rows=10, bins=4, batch_size=4, resamples=50)
BLOCKS: dict[str, Callable[[Any], Any]] = {"llama": lambda model: model.model.layers, "gemma2": lambda model: model.model.layers}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {family: headed_model(family, root / family) for family in FAMILIES}


@pytest.fixture(scope="module")
def stores(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, ActivationStore]:
    root = tmp_path_factory.mktemp("stores")
    return {family: store_of(model, LAYER, root / family) for family, model in models.items()}


def _splice(store: ActivationStore, dictionary: Any, policy: SplicingPolicy = POLICY, cache: Path | None = None) -> SplicingMeasures:
    model = str(store.manifest.description.source["model"])
    return measure_splicing(dictionary, model, LAYER, store, np.arange(store.sequences), policy, cache)


@pytest.mark.parametrize("family", FAMILIES)
def test_going_on_from_a_stream_gives_the_bits_of_a_whole_pass(family: str, models: dict[str, Path]) -> None:
    model = LanguageModel.load(str(models[family]), head=True)
    whole = AutoModelForCausalLM.from_pretrained(models[family]).eval()
    tokens = torch.randint(5, 300, (3, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(20) < torch.tensor([[20], [13], [4]])
    with torch.no_grad():
        if family == "bert":
            expected = whole.bert(tokens, attention_mask=mask.long()).last_hidden_state
        else:
            expected = whole(tokens, attention_mask=mask.long()).logits
    assert model.has_head == (family != "bert")
    for layer in ("embed", *range(LAYERS)):
        stream = model.residuals(tokens, mask, [layer])[layer]
        assert torch.equal(model.continued(stream, layer, tokens, mask)[mask], expected[mask])
        last = model.carried(stream, layer, LAYERS - 1, tokens, mask)
        assert torch.equal(last[mask], model.residuals(tokens, mask, [LAYERS - 1])[LAYERS - 1][mask])
        assert torch.equal(model.continued(last, LAYERS - 1, tokens, mask)[mask], expected[mask])
        moved = model.continued(stream + torch.randn(stream.shape), layer, tokens, mask)
        assert not torch.allclose(moved[mask], expected[mask])
    assert torch.equal(model.residuals(tokens, mask, [2])[2], LanguageModel.load(str(models[family])).residuals(tokens, mask, [2])[2])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_identity_changes_nothing(family: str, stores: dict[str, ActivationStore]) -> None:
    measured = _splice(stores[family], identity())
    for part in (measured.headline, measured.everything, *(entry.measured for entry in measured.bins)):
        assert part.spliced.value == part.clean.value
        for ablated, recovered in ((part.zero, part.recovered_zero), (part.mean, part.recovered_mean)):
            assert recovered.value in (1, None)
            assert recovered.value is None or ablated.value > part.clean.value  # a random model can gain by ablation
        assert (part.kl is None) == (family == "bert")
        assert part.kl is None or part.kl.value == 0 < part.kl_zero.value
    assert measured.loss == ("hidden states" if family == "bert" else "cross-entropy")
    assert measured.documents > 1
    assert family != "bert" or measured.headline.recovered_zero == (1, 1, 1, measured.tokens)
    assert json.loads(json.dumps(as_json(measured), allow_nan=False))["bins"][0]["measured"]["clean"]["n"] > 0


@pytest.mark.parametrize("family", BLOCKS)
@pytest.mark.parametrize("everything", [False, True])
def test_losses_are_those_of_a_hand_written_hook(family: str, everything: bool, stores: dict[str, ActivationStore]) -> None:
    store, dictionary = stores[family], random_dictionary()
    measured = _splice(store, dictionary, SplicingPolicy(rows=3, bins=1, resamples=2))
    table = store.sequence_table
    entries = [(2 * part + 1) * store.sequences // 6 for part in range(3)]
    whole = AutoModelForCausalLM.from_pretrained(str(store.manifest.description.source["model"])).eval()
    mean = store.moments.pooled_mean().float()
    substitutes: dict[str, Callable[[Tensor], Tensor]] = {
        "zero": torch.zeros_like,
        "mean": mean.expand_as,
        "spliced": lambda x: dictionary(x, torch.arange(len(x))),
    }
    found: dict[str, list[Tensor]] = {name: [] for name in ("clean", *substitutes, *(f"kl_{name}" for name in substitutes))}
    for entry in entries:
        rows = store.read(np.array([entry]))
        kept = rows.excluded == 0
        assert not kept[0]
        assert int(table.length[entry]) == len(kept)
        counted = kept[:-1]
        with torch.no_grad():
            clean = whole(rows.token[None]).logits[0, :-1]
        found["clean"].append(functional.cross_entropy(clean, rows.token[1:], reduction="none")[counted])
        for name, substitute in substitutes.items():

            def replace(block: Any, arguments: Any, output: Tensor, instead: Callable[[Tensor], Tensor] = substitute) -> Tensor:
                return torch.where((kept | everything)[:, None], instead(output[0]), output[0])[None]  # noqa: B023 (used at once)

            hook = BLOCKS[family](whole)[LAYER].register_forward_hook(replace)
            with torch.no_grad():
                logits = whole(rows.token[None]).logits[0, :-1]
            hook.remove()
            found[name].append(functional.cross_entropy(logits, rows.token[1:], reduction="none")[counted])
            kl = functional.kl_div(logits.log_softmax(1), clean.log_softmax(1), log_target=True, reduction="none").sum(1)
            found[f"kl_{name}"].append(kl[counted])
    expected = {name: float(torch.cat(parts).double().mean()) for name, parts in found.items()}
    got = measured.everything if everything else measured.headline
    for name in ("clean", "zero", "mean", "spliced", "kl_zero", "kl_mean"):
        assert getattr(got, name).value == pytest.approx(expected[name], abs=2e-5)
    assert got.kl is not None
    assert got.kl.value == pytest.approx(expected["kl_spliced"], abs=2e-5)
    for ablation, recovered in (("zero", got.recovered_zero), ("mean", got.recovered_mean)):
        cost = expected[ablation] - expected["clean"]
        assert recovered.value == (pytest.approx((expected[ablation] - expected["spliced"]) / cost, abs=1e-3) if cost > 0 else None)
    assert measured.tokens == got.clean.n == sum(len(part) for part in found["clean"])


def test_gemma2_predictions_are_capped(stores: dict[str, ActivationStore], models: dict[str, Path]) -> None:
    model = LanguageModel.load(str(models["gemma2"]), head=True)
    cap = json.loads((models["gemma2"] / "config.json").read_text())["final_logit_softcapping"]
    rows = stores["gemma2"].read(np.array([0]))
    logits = model.continued(
        1e4 * torch.randn(1, len(rows.x), rows.x.shape[1]), "embed", rows.token[None], torch.ones(1, len(rows.x), dtype=torch.bool)
    )
    assert 0 < float(logits.abs().max()) <= cap


def test_bins_divide_the_tokens_by_index(stores: dict[str, ActivationStore]) -> None:
    measured = _splice(stores["llama"], random_dictionary())
    assert [entry.first for entry in measured.bins] == [1, *(entry.last + 1 for entry in measured.bins[:-1])]
    assert sum(entry.measured.clean.n for entry in measured.bins) == measured.tokens == measured.headline.clean.n
    pooled = sum(entry.measured.spliced.value * entry.measured.spliced.n for entry in measured.bins) / measured.tokens
    assert pooled == pytest.approx(measured.headline.spliced.value)
    for part in (measured.headline.spliced, measured.headline.kl, _splice(stores["bert"], random_dictionary()).headline.recovered_zero):
        assert part is not None
        assert part.low < part.value < part.high


@pytest.mark.parametrize(("costs", "told"), [((1.0, 0.9, 1.1), 0.5), ((1.0, -0.9, 1.1), None), ((-1.0, -0.9, -1.1), None)])
def test_a_share_of_what_may_cost_nothing_is_not_told(costs: tuple[float, ...], told: float | None) -> None:
    clean, cost = np.ones(3), np.array(costs)
    weights = np.concatenate([np.ones((1, 3)), np.random.default_rng(0).multinomial(3, np.full(3, 1 / 3), 200)])
    losses = {"clean": clean, "zero/kept": clean + cost, "mean/kept": clean + cost, "spliced/kept": clean + cost / 2}
    measured = _measured(Means(np.arange(3), weights), losses, "kept", np.ones(3, dtype=bool))
    assert measured.recovered_zero.value == (told and pytest.approx(told))


def test_a_worse_dictionary_recovers_less(stores: dict[str, ActivationStore]) -> None:
    good, bad = identity(), random_dictionary()
    with torch.no_grad():
        good.encoder[::5] = 0  # every fifth direction is lost
    assert _splice(stores["bert"], good).headline.recovered_mean.value > _splice(stores["bert"], bad).headline.recovered_mean.value


def test_ablations_are_computed_once(stores: dict[str, ActivationStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("continued", "carried"):
        method = getattr(LanguageModel, name)
        monkeypatch.setattr(LanguageModel, name, lambda *arguments, own=name, method=method: calls.append(own) or method(*arguments))
    store, dictionary = stores["gpt2"], random_dictionary()
    without = _splice(store, dictionary)
    alone, batches = calls.count("continued"), calls.count("carried")
    assert alone == 7 * batches
    first = _splice(store, dictionary, cache=tmp_path)
    assert (calls.count("continued"), calls.count("carried")) == (2 * alone, 2 * batches)
    second = _splice(store, dictionary, cache=tmp_path)
    assert calls.count("continued") == 2 * alone + alone * 3 // 7  # clean and spliced twice; of 7, four are ablations
    assert calls.count("carried") == 2 * batches  # for the clean one the head alone
    assert without == first == second
    for file in (tmp_path / "splicing").iterdir():
        file.write_bytes(file.read_bytes()[:-8])
        assert _splice(store, dictionary, cache=tmp_path) == first
    _splice(store, dictionary, SplicingPolicy(rows=5, bins=4, batch_size=4, resamples=50), cache=tmp_path)
    assert len(list((tmp_path / "splicing").iterdir())) == 4


def test_weights_without_a_head(tmp_path: Path) -> None:
    store = store_of(tiny_model("llama", tmp_path / "model"), LAYER, tmp_path / "store")
    measured = _splice(store, identity())
    assert measured.loss == "hidden states"
    assert "model has no language-model head among its weights" in str(measured.reason)
    assert (measured.headline.kl, measured.headline.recovered_zero.value) == (None, 1)


def test_what_does_not_belong_together(stores: dict[str, ActivationStore], store: ActivationStore, tmp_path: Path) -> None:
    llama = stores["llama"]
    name, every = str(llama.manifest.description.source["model"]), np.arange(llama.sequences)
    with pytest.raises(TemporalLensError, match=r"width 24 does not fit layer 1 of \S+llama, whose activations have width 32"):
        measure_splicing(random_dictionary(24), name, LAYER, llama, every, POLICY)
    with pytest.raises(TemporalLensError, match=r"holds layer 1 of \S+llama, not layer 2 of \S+llama"):
        measure_splicing(random_dictionary(), name, 2, llama, every, POLICY)
    with pytest.raises(TemporalLensError, match="was not harvested from a language model"):
        measure_splicing(random_dictionary(24), name, LAYER, store, np.arange(4), POLICY)
    model = headed_model("gpt2", tmp_path / "model")
    harvested = store_of(model, LAYER, tmp_path / "store")
    shutil.rmtree(model)
    headed_model("gpt2", model, seed=1)
    with pytest.raises(TemporalLensError, match=r"model has changed since .*store was harvested"):
        measure_splicing(random_dictionary(), str(model), LAYER, harvested, np.arange(4), POLICY)


def test_what_is_known_without_codes_stands_beside(stores: dict[str, ActivationStore], tmp_path: Path) -> None:
    store = stores["gpt2"]
    arm = BatchTopK(features=16, k=2, expectation=ExpectationPolicy(embedding=False))
    dictionary = train(store, arm, 10, tmp_path / "arm", batch_size=32).dictionary
    headline = _splice(store, dictionary, cache=tmp_path / "cache").headline
    assert headline.known is not None and headline.recovered_mean_known is not None and headline.recovered_zero_known is not None
    dictionary.threshold.fill_(torch.inf)  # type: ignore[operator]
    silent = _splice(store, dictionary, cache=tmp_path / "cache").headline
    assert silent.spliced == silent.known == headline.known
    assert _splice(store, random_dictionary(), cache=tmp_path / "cache").headline.known is None
    assert "without codes (mean)" in tables({"arm": _splice(store, dictionary)})[0].columns


def test_measurements_of_before_are_read(stores: dict[str, ActivationStore]) -> None:
    content = as_json(_splice(stores["gpt2"], random_dictionary()))
    for part in (content["headline"], content["everything"], *(one["measured"] for one in content["bins"])):
        for name in ("known", "recovered_zero_known", "recovered_mean_known"):
            del part[name]
    assert SECTION.read(content).headline.known is None
