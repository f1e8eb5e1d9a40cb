"""Probes find what was planted and nothing where labels mean nothing; divisions, solvers, intervals and caches are right."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from temporallens.activations.language.models import LanguageModel
from temporallens.dictionaries.arms.batchtopk import BatchTopK
from temporallens.dictionaries.arms.standard import Standard, StandardDictionary
from temporallens.dictionaries.saving import load_dictionary, save_dictionary
from temporallens.errors import TemporalLensError
from temporallens.evaluation.identity import dictionary_fingerprint
from temporallens.evaluation.probing import section as pooled_probing
from temporallens.evaluation.probing.fitting import FOLDS, best_columns, dense_probes, draw_tasks, sparse_probes
from temporallens.evaluation.probing.results import FOLDER, ProbingMeasures, Score, probing_gains
from temporallens.evaluation.probing.scores import resamples_of, score_probes, weighted_auc
from temporallens.evaluation.probing.section import ProbingPolicy, measure_probing
from temporallens.serial import as_json
from tiny_models import WIDTH, tiny_model

CLASSES = st.lists(st.sampled_from("abc"), max_size=60).map(lambda more: list("abc" * 10) + more)


# Divisions.


@given(CLASSES, st.lists(st.integers(0, 99), min_size=1, max_size=3, unique=True), st.floats(0.05, 0.8))
def test_divisions_keep_texts_apart_and_classes_level(labels: list[str], seeds: list[int], share: float) -> None:
    tasks = draw_tasks(labels, seeds, share)
    again = draw_tasks(labels, seeds, share)
    assert all(torch.equal(one, other) for one, other in zip(tasks[:6], again[:6], strict=True))
    assert tasks.positive == ["a", "b", "c"] * len(seeds) or set(tasks.positive) == set("abc")
    tested: list[set[int]] = []
    for number, positive in enumerate(tasks.positive):
        inside = tasks.fold[number] >= 0
        train, test = tasks.train[number][inside].tolist(), tasks.test[number][tasks.tested[number]].tolist()
        assert len(set(train)) == len(train) and len(set(test)) == len(test) and not set(train) & set(test)
        for rows, label in ((train, tasks.train_label[number][inside]), (test, tasks.test_label[number][tasks.tested[number]])):
            assert [labels[row] == positive for row in rows] == label.tolist()
            assert int((~label).sum()) == int(label.sum())
        for fold in range(FOLDS):
            chosen = tasks.train_label[number][tasks.fold[number] == fold]
            assert 0 < int(chosen.sum()) < len(chosen)
        tested.append(set(test))
        seed = number // 3
        others = set().union(*(set(tasks.test[other][tasks.tested[other]].tolist()) for other in range(seed * 3, seed * 3 + 3)))
        assert not others & set(train)  # no task of a division trains on what another one tests


def test_two_classes_are_one_task() -> None:
    tasks = draw_tasks(["x"] * 12 + ["y"] * 30, [0, 1], 1 / 3)
    assert tasks.positive == ["y", "y"]
    assert tasks.train_label.sum(1).tolist() == [8, 8] and tasks.train.shape == (2, 16) and tasks.test.shape == (2, 8)


# Probes.


def table_with(strength: float, seed: int = 0) -> tuple[torch.Tensor, list[str]]:
    """Sparse positive columns; column 7 is raised for class b by `strength`."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.rand(240, 60, generator=generator) * (torch.rand(240, 60, generator=generator) < 0.2)
    labels = [("a", "b", "c")[number % 3] for number in range(240)]
    table[torch.tensor([label == "b" for label in labels]), 7] += strength
    return table, labels


def test_a_planted_column_is_found_and_probed() -> None:
    table, labels = table_with(3.0)
    tasks = draw_tasks(labels, [0, 1], 1 / 3)
    resamples = resamples_of(labels, 100, 0)
    planted = torch.tensor([name == "b" for name in tasks.positive])
    assert bool((best_columns(table, tasks, 1)[planted] == 7).all())
    for probed in (sparse_probes(table, tasks, [1])[1], dense_probes(table, tasks)):
        scored = score_probes(probed.score, tasks, resamples)
        assert float(scored.auc[planted].min()) > 0.97 and float(scored.accuracy[planted].min()) > 0.9
        assert float(scored.auc_resampled[planted].min()) > 0.9


@pytest.mark.parametrize("seed", range(5))
def test_labels_that_mean_nothing_stay_at_chance(seed: int) -> None:
    table, _ = table_with(0.0, seed)
    labels = np.random.default_rng(seed).permutation(["a", "b"] * 120).tolist()
    tasks = draw_tasks(labels, [0, 1, 2], 1 / 3)
    resamples = resamples_of(labels, 200, 0)
    for probed in (*sparse_probes(table, tasks, [1, 10]).values(), dense_probes(table, tasks)):
        scored = score_probes(probed.score, tasks, resamples)
        low, high = np.quantile(scored.auc_resampled.mean(0), [0.005, 0.995])
        assert low < 0.5 < high


def test_columns_are_chosen_on_training_rows_only() -> None:
    """A column that gives every test row away, and says nothing on training rows, must not help."""
    table, labels = table_with(0.0)
    tasks = draw_tasks(labels, [0], 1 / 3)
    task = tasks._replace(**{name: getattr(tasks, name)[:1] for name in tasks._fields})
    rows = task.test[0]
    table[rows, 11] = 100 * task.test_label[0].float()
    scored = score_probes(sparse_probes(table, task, [1])[1].score, task, resamples_of(labels, 2, 0))
    assert float(scored.auc[0]) < 0.75


def reference(x: torch.Tensor, label: torch.Tensor, c: float, test: torch.Tensor) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        probe = LogisticRegression(C=c, tol=1e-10, max_iter=10_000).fit(x.double().numpy(), label.numpy())
    return probe.decision_function(test.double().numpy())


def test_probes_are_those_of_scikit_learn() -> None:
    table, labels = table_with(0.5)
    tasks = draw_tasks(labels[:200], [3], 0.3)  # classes of unlike sizes: rows are padded
    for k in (1, 5, 30):
        probed = sparse_probes(table, tasks, [k])[k]
        for number in range(len(tasks.positive)):
            inside, tested = tasks.fold[number] >= 0, tasks.tested[number]
            chosen = best_columns(table, tasks, k)[number, -1]
            train, test = (table[rows][:, chosen] for rows in (tasks.train[number][inside], tasks.test[number][tested]))
            centre, spread = train.mean(0), train.std(0, correction=0)
            c = float(probed.regularisation[number])
            expected = reference((train - centre) / spread, tasks.train_label[number][inside], c, (test - centre) / spread)
            np.testing.assert_allclose(probed.score[number][tested].numpy(), expected, atol=2e-4)
    dense = dense_probes(table, tasks)
    for number in range(len(tasks.positive)):
        inside, tested = tasks.fold[number] >= 0, tasks.tested[number]
        centred = table - table.mean(0)
        train, test = centred[tasks.train[number][inside]], centred[tasks.test[number][tested]]
        scale = (train - train.mean(0)).square().sum(1).mean().sqrt()
        expected = reference(train / scale, tasks.train_label[number][inside], float(dense.regularisation[number]), test / scale)
        np.testing.assert_allclose(dense.score[number][tested].numpy(), expected, atol=5e-3)


def test_regularisation_follows_what_can_be_learned() -> None:
    hopeless, labels = table_with(0.0)
    tasks = draw_tasks(labels, [0], 1 / 3)
    plain, _ = table_with(3.0)
    weak = sparse_probes(hopeless, tasks, [50])[50].regularisation
    strong = sparse_probes(plain, tasks, [50])[50].regularisation
    assert float(weak.max()) <= 0.01 < float(strong[tasks.positive.index("b")])


# Scores.


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(-2, 2), st.booleans(), st.integers(0, 3)), min_size=2, max_size=30))
def test_auc_counts_ties_half_and_rows_by_weight(rows: list[tuple[int, bool, int]]) -> None:
    score, label, weight = (torch.tensor(column) for column in zip(*rows, strict=True))
    found = float(weighted_auc(score.double()[None], label[None], weight.float()[None, None])[0, 0])
    repeated = np.repeat(np.arange(len(rows)), weight.numpy())
    if len(set(label.numpy()[repeated])) < 2:
        assert np.isnan(found)
    else:
        assert found == pytest.approx(roc_auc_score(label.numpy()[repeated], score.numpy()[repeated]))


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """Scores of known AUC: the 95 % interval of one bootstrap holds it in 88 to 99 of 100 worlds."""
    labels = ["a", "b"] * 100
    resamples = resamples_of(labels, 200, 0)
    generator = torch.Generator().manual_seed(0)
    truth = 0.7602  # of two normals one standard deviation apart
    covered = 0
    for seed in range(100):
        tasks = draw_tasks(labels, [seed], 0.5)
        score = torch.randn(1, tasks.test.shape[1], generator=generator, dtype=torch.float64) + tasks.test_label.double()
        scored = score_probes(score, tasks, resamples)
        low, high = np.quantile(scored.auc_resampled[0] - scored.auc_resampled[0].mean(), [0.025, 0.975]) + float(scored.auc[0])
        covered += low <= truth <= high
    assert 88 <= covered <= 99


# From texts to measures.

FILLERS = ["rain", "river", "road", "hills", "night", "morning", "bridge", "people", "prices", "home"]


def texts_of(kind: str, count: int = 60) -> list[tuple[str, str]]:
    """Two classes: `sign` differs in whether a `!` is in the text, `place` in whether it stands early or late, `none` in nothing."""
    generator = np.random.default_rng(0)
    rows = []
    for number in range(count):
        for label in ("x", "y"):
            own = generator.permutation(FILLERS).tolist()[:8]
            if kind == "sign" and label == "y":
                own.insert(int(generator.integers(8)), "!")
            if kind == "place":
                own.insert(1 if label == "y" else len(own), "!")  # never first: a word without a space before it is another token
            rows.append((" ".join([*own, str(number % 7), FILLERS[number // 7]]), label))
    return rows


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_model("llama", tmp_path_factory.mktemp("models") / "llama"))


@pytest.fixture
def sets(tmp_path: Path) -> dict[str, str]:
    folder = tmp_path / "sets"
    folder.mkdir()
    paths = {}
    for kind in ("sign", "place", "none"):
        path = folder / f"{kind}.jsonl"
        path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in texts_of(kind)), "utf-8")
        paths[kind] = str(path)
    return paths


def planted(model: str) -> StandardDictionary:
    """A dictionary on token embeddings whose feature 5 fires on ` !` and on hardly anything else; all others are random."""
    network = LanguageModel.load(model, up_to="embed")
    token = network.encode("a !")[-1]
    row = torch.tensor([[token]])
    embedding = network.residuals(row, torch.ones_like(row, dtype=torch.bool), ["embed"])["embed"][0, 0]
    dictionary = Standard(features=40).build(WIDTH, 64, torch.Generator().manual_seed(1))
    assert isinstance(dictionary, StandardDictionary)
    with torch.no_grad():
        dictionary.encoder[5] = 20 * embedding / embedding.norm()
        dictionary.encoder_bias[5] = -18 * embedding.norm()
    return dictionary


POLICY = {"texts_per_class": 60, "context_length": 64, "dtype": "float32", "k": (1, 3), "seeds": (0, 1), "resamples": 100, "bins": 3}


def measure(dictionary: StandardDictionary, model: str, paths: list[str], cache: Path, **changes: object) -> ProbingMeasures:
    return measure_probing(dictionary, model, "embed", ProbingPolicy(**{**POLICY, "sets": tuple(paths), **changes}), cache)


def score_of(found: ProbingMeasures, subject: str, name: str | None, pooling: str, k: int | None) -> Score:
    chosen = [score for score in found.scores if (score.subject, score.set, score.pooling, score.k) == (subject, name, pooling, k)]
    assert len(chosen) == 1
    return chosen[0]


def test_one_planted_feature_is_enough(model: str, sets: dict[str, str], tmp_path: Path) -> None:
    found = measure(planted(model), model, [sets["sign"], sets["none"]], tmp_path / "cache")
    for pooling in ("mean", "max"):
        score = score_of(found, "features", "sign", pooling, 1)
        assert score.auc.value is not None and score.auc.value > 0.98
        assert score.auc.low is not None and score.auc.low > 0.9
        assert list(score.classes) == ["y"] and len(score.seeds) == 2
        assert 40 < score.auc.n <= 80  # tested texts: a third of 120, in either of two divisions
    for k in (1, 3, None):
        chance = score_of(found, "features", "none", "mean", k).auc
        assert chance.low is not None and chance.high is not None and chance.low - 0.05 < 0.5 < chance.high + 0.05
    over_sets = score_of(found, "features", None, "mean", 1).auc
    both = [score_of(found, "features", name, "mean", 1).auc.value for name in ("sign", "none")]
    assert over_sets.value == pytest.approx(sum(value for value in both if value is not None) / 2)
    assert score_of(found, "features", None, "own", 1).auc == over_sets
    json.dumps(as_json(found), allow_nan=False)


def test_only_position_bins_see_where_a_token_stands(model: str, sets: dict[str, str], tmp_path: Path) -> None:
    found = measure(planted(model), model, [sets["place"]], tmp_path / "cache")
    bins, mean = (score_of(found, "features", "place", pooling, 1).auc.value for pooling in ("bins", "mean"))
    assert bins is not None and mean is not None and bins > 0.95 and mean < 0.75


def test_everything_is_found_again(model: str, sets: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, paths = tmp_path / "cache", [sets["sign"]]
    first = measure(planted(model), model, paths, cache)
    assert as_json(measure(planted(model), model, paths, tmp_path / "another")) == as_json(first)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("nothing is left to do")

    with monkeypatch.context() as patch:
        patch.setattr(pooled_probing, "pool_codes", refuse)
        patch.setattr(pooled_probing, "pool_raw", refuse)
        assert as_json(measure(planted(model), model, paths, cache)) == as_json(first)
    other = Standard(features=24).build(WIDTH, 64, torch.Generator().manual_seed(2))
    with monkeypatch.context() as patch:
        patch.setattr(pooled_probing, "pool_raw", refuse)  # channels do not depend on the dictionary
        second = measure(other, model, paths, cache)
    assert [score for score in second.scores if score.subject == "channels"] == [
        score for score in first.scores if score.subject == "channels"
    ]
    damaged = cache / FOLDER / first.kept["sign"]
    damaged.write_bytes(damaged.read_bytes()[:100])
    assert as_json(measure(planted(model), model, paths, cache)) == as_json(first)


def test_gains_are_paired(model: str, sets: dict[str, str], tmp_path: Path) -> None:
    cache, paths = tmp_path / "cache", [sets["sign"], sets["place"]]
    dull = Standard(features=4).build(WIDTH, 64, torch.Generator().manual_seed(3))
    first, second = (measure(one, model, paths, cache) for one in (planted(model), dull))
    for gain in probing_gains(first.kept, first.kept, cache):
        if gain.pooling == gain.against:
            assert gain.auc[:3] == (0, 0, 0) and gain.verdict == "no difference"
    gains = {(gain.set, gain.pooling, gain.against, gain.k): gain for gain in probing_gains(first.kept, second.kept, cache)}
    assert set(gains) == {
        (name, pooling, against, k)
        for name in ("sign", "place", None)
        for pooling in ("mean", "last", "max", "bins")
        for against in (pooling, "bins")
        for k in (1, 3, None)
    }
    best = gains["sign", "max", "max", 1]
    assert best.verdict == "above" and best.auc.value is not None
    ours, theirs = (score_of(one, "features", "sign", "max", 1).auc.value for one in (first, second))
    assert ours is not None and theirs is not None and best.auc.value == pytest.approx(ours - theirs)
    other = measure(dull, model, paths, cache, resamples=50)
    with pytest.raises(TemporalLensError, match="were not probed alike on 'sign'"):
        probing_gains(first.kept, other.kept, cache)
    with pytest.raises(TemporalLensError, match="probed on no set in common"):
        probing_gains(first.kept, measure(dull, model, [sets["none"]], cache).kept, cache)


def test_texts_of_the_same_tokens_are_left_out(model: str, tmp_path: Path) -> None:
    """What differs beyond the context only would be in training and test texts at once."""
    same = "The rain fell on the hills all night and the river rose in the morning "
    rows = [(f"{same} {number}", "x") for number in range(12)] + texts_of("none", 20)
    path = tmp_path / "cut.jsonl"
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows), "utf-8")
    found = measure(planted(model), model, [str(path)], tmp_path / "cache", context_length=24)
    described = found.sets[0]
    assert described.duplicates == 11 and described.classes == {"x": 21, "y": 20} and described.filled == 41, described


def test_saebench_s_protocol_stands_beside_it(model: str, sets: dict[str, str], tmp_path: Path) -> None:
    settings_ = {"probe_train_set_size": 40, "probe_test_set_size": 20, "context_length": 64, "k_values": [1]}
    found = measure(planted(model), model, [sets["sign"]], tmp_path / "cache", saebench=settings_)
    assert found.saebench is not None
    assert found.saebench["averages"]["sae_top_1_test_accuracy"] > 0.9 and set(found.saebench["by_class"]) == {"sign"}


def test_mistakes(model: str, sets: dict[str, str], tmp_path: Path) -> None:
    cache, paths = tmp_path / "cache", [sets["sign"]]
    wide = Standard(features=8).build(WIDTH + 1, 64, torch.Generator())
    with pytest.raises(TemporalLensError, match=f"for activations of width {WIDTH + 1}, the residual stream of llama has width {WIDTH}"):
        measure(wide, model, paths, cache)
    with pytest.raises(TemporalLensError, match="layer 9 is out of range: llama has layers 0 to 3"):
        measure_probing(planted(model), model, 9, ProbingPolicy(sets=tuple(paths)), cache)
    constant = Standard(features=8).build(WIDTH, 64, torch.Generator())
    with torch.no_grad():
        constant.encoder.zero_()
        constant.encoder_bias.fill_(1.0)
    with pytest.raises(TemporalLensError, match="gives every text of 'sign' the same codes"):
        measure(constant, model, paths, cache)
    special = tmp_path / "special.jsonl"
    rows = [*texts_of("sign"), ("</s>", "x")]
    special.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows), "utf-8")
    with pytest.raises(TemporalLensError, match=r"'special': text \d+ \('</s>'\), counted from 0, hold no token but padding, BOS and EOS"):
        measure(planted(model), model, [str(special)], cache, texts_per_class=100)
    for changes, sentence in (
        ({"seeds": ()}, "seeds is .*at least one value"),
        ({"k": (1, 1)}, "k is .*none twice"),
        ({"k": (0,)}, "a sparse probe has at least one column"),
        ({"folds": 3}, "has no setting .folds"),
    ):
        with pytest.raises(TemporalLensError, match=sentence):
            ProbingPolicy(**changes)


def test_fingerprints_tell_dictionaries_apart() -> None:
    def build(**changes: int) -> object:
        return BatchTopK(**{"features": 16, "k": 4, **changes}).build(WIDTH, 8, torch.Generator().manual_seed(0))

    first = build()
    assert dictionary_fingerprint(first) == dictionary_fingerprint(build())  # type: ignore[arg-type]
    other = build()
    with torch.no_grad():
        other.encoder[3, 2] += 1e-6  # type: ignore[attr-defined]
    changed = build()
    changed.position_policy = 3  # type: ignore[attr-defined]
    assert len({dictionary_fingerprint(one) for one in (first, other, changed)}) == 3  # type: ignore[arg-type]


def test_a_fingerprint_is_of_what_is_saved_and_not_of_how_an_object_keeps_it(tmp_path: Path) -> None:
    arm = BatchTopK(features=16, k=4)
    made = arm.build(WIDTH, 8, torch.Generator().manual_seed(0))
    saved = dictionary_fingerprint(made)
    made._expected = 0.7  # type: ignore[attr-defined]  # where the next batch looks first: no result follows from it
    made.note = "a private word"
    assert dictionary_fingerprint(made) == saved
    save_dictionary(made, tmp_path / "saved", arm, 8)
    assert dictionary_fingerprint(load_dictionary(tmp_path / "saved")) == saved
    assert dictionary_fingerprint(BatchTopK(features=16, k=5).build(WIDTH, 8, torch.Generator().manual_seed(0))) != saved
