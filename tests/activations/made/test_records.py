"""Records: what they look like, the network that learns them, its store, and how fields are recovered from masks."""

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from torch import Tensor

from temporallens.activations.made import records as r
from temporallens.activations.made.records import FIELDS, RecordsPolicy, harvest_records, make_records, read_layout
from temporallens.activations.store import ActivationStore
from temporallens.dictionaries.arms.batchtopk import BatchTopK
from temporallens.errors import TemporalLensError
from temporallens.evaluation.heldout import find_firings
from temporallens.evaluation.known import fields as f
from temporallens.figures.masks import Case, draw_two_cases, effect, sorted_gates
from temporallens.files import write_json

TINY = RecordsPolicy(records=64, records_per_document=4, width=16, heads=2, layers=2, layer=0, steps=3, batch_size=8, largest_excess=10.0)


@pytest.fixture(scope="module", autouse=True)
def few_test_records() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(r, "TEST_RECORDS", 64)
        yield


@pytest.fixture(scope="module")
def store(few_test_records: None, tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return harvest_records(TINY, tmp_path_factory.mktemp("records") / "store")


def lines(count: int, seed: int = 0) -> list[str]:
    return [bytes(record).decode() for record in make_records(count, np.random.default_rng(seed))]


# Records


def test_records_are_valid_and_of_one_format() -> None:
    for line in lines(500):
        assert len(line) == len(r.EXAMPLE) == 43 and line[0] == "\n"
        datetime.strptime(line[1:18], "%Y-%m-%dT%H:%MZ")
        assert line[19:23] in r.STATIONS
        assert abs(float(line[26:31])) <= 49.9 and abs(float(line[33:40])) <= 90.0
        assert [line[column] for column in (18, 24, 25, 31, 32, 40, 41)] == [*" ", *" T", *" L", *" #"]
        assert int(line[42]) == (int(line[23]) + int(line[30]) + 1) // 2
    assert set("".join(lines(500))) == set(r.VOCABULARY)


def test_the_example_is_a_record_of_the_format() -> None:
    example = np.frombuffer(r.EXAMPLE.encode(), dtype=np.uint8)[None]
    assert r.check_digit(example).tolist() == [int(r.EXAMPLE[42])]
    assert "".join(r.VOCABULARY[token] for token in r.tokens_of(example)[0]) == r.EXAMPLE


def test_generation_follows_the_generator() -> None:
    assert lines(20) == lines(20) != lines(20, seed=1)


def test_fields_divide_the_columns() -> None:
    columns = sorted(column for field in FIELDS.values() for column in field)
    assert columns == list(range(43))
    shown = {name: "".join(r.EXAMPLE[column] for column in field) for name, field in FIELDS.items()}
    assert shown["year"] == "1998" and shown["minute"] == "13" and shown["station"] == "GOLF6"
    assert shown["temperature"] == "T+03.1" and shown["latitude"] == "L+016.97" and shown["separators"] == "\n--T:Z    "


def test_the_floor_is_the_entropy_of_a_record() -> None:
    days = (datetime(2050, 1, 1) - datetime(1950, 1, 1)).days
    assert pytest.approx(np.log(days * 1440.0 * 9 * 10 * 999 * 18001)) == r.ENTROPY
    assert pytest.approx(r.ENTROPY / 42) == r.FLOOR


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"layer": 3}, "has layers 0 to 2"),
        ({"width": 130}, "cannot be shared by 4 heads"),
        ({"records": 8}, "at least two documents"),
        ({"source": "world"}, "records"),
        ({"recods": 8}, "did you mean .records"),
    ],
)
def test_an_impossible_policy_is_refused(wrong: dict[str, object], sentence: str) -> None:
    with pytest.raises(TemporalLensError, match=sentence):
        RecordsPolicy(**wrong)


# The network and its store


def test_training_lowers_the_loss_and_never_touches_the_global_generator() -> None:
    policy = TINY.model_copy(update={"steps": 25, "batch_size": 16, "learning_rate": 1e-2})
    before = torch.random.get_rng_state()
    first, second = r.train_network(TINY), r.train_network(policy)
    assert torch.equal(before, torch.random.get_rng_state())
    assert second.mean_loss < first.mean_loss - 0.3 and second.mean_loss > r.FLOOR
    assert second.loss[0] == 0


def test_a_network_that_did_not_learn_is_refused(folder: Path) -> None:
    with pytest.raises(TemporalLensError, match="did not learn the format; raise steps"):
        harvest_records(TINY.model_copy(update={"largest_excess": 0.1}), folder)
    assert not (folder / "manifest.json").exists()
    harvest_records(TINY, folder)  # nothing is in the way of another try


def test_the_learning_rate_rises_then_falls() -> None:
    rates = [r.rate(step, 100) for step in range(100)]
    assert max(rates) == 1 and rates.index(1.0) == 5 and rates[-1] < 1e-3
    assert np.all(np.diff(rates[:6]) > 0) and np.all(np.diff(rates[6:]) < 0)


def test_the_store_keeps_every_columns_place(store: ActivationStore) -> None:
    rows = store.read(np.arange(store.sequences))
    assert (store.sequences, store.documents, store.positions, store.width, store.rows) == (64, 16, 43, 16, TINY.tokens)
    assert torch.equal(rows.position, rows.index) and torch.equal(rows.position.long(), torch.arange(43).repeat(64))
    assert torch.equal(rows.excluded > 0, rows.position == 0)
    assert torch.equal(rows.document, rows.sequence // 4)
    lines_stored = ["".join(r.VOCABULARY[token] for token in tokens) for tokens in rows.token.view(64, 43).tolist()]
    assert len(set(lines_stored)) == 64 and all(line.startswith("\n") for line in lines_stored)
    assert rows.x.dtype == torch.float32 and store.manifest.description.source["kind"] == "records"


def test_the_stored_network_gives_the_stored_activations(store: ActivationStore) -> None:
    from transformers import GPT2LMHeadModel

    network = GPT2LMHeadModel.from_pretrained(store.folder / "network")
    rows = store.read(np.arange(2))
    with torch.no_grad():
        streams = network(rows.token.view(2, 43), output_hidden_states=True).hidden_states
    torch.testing.assert_close(streams[TINY.layer + 1], rows.x.view(2, 43, -1), rtol=1e-4, atol=1e-5)
    truth = json.loads((store.folder / "truth.json").read_text())
    assert truth["loss"] > truth["floor"] and len(truth["loss_by_column"]) == 43


def test_the_layout_is_read_back(store: ActivationStore, folder: Path) -> None:
    assert read_layout(store.folder) == (FIELDS, r.VOCABULARY, r.EXAMPLE)
    folder.mkdir()
    with pytest.raises(TemporalLensError, match="should be what is known"):
        read_layout(folder)
    write_json(folder / "truth.json", {"format": "temporallens.records/1"})
    with pytest.raises(TemporalLensError, match="is damaged"):
        read_layout(folder)


def test_a_finished_store_is_opened_and_no_other_settings_are_taken(store: ActivationStore) -> None:
    before = (store.folder / "manifest.json").stat().st_mtime_ns
    assert harvest_records(TINY, store.folder).rows == store.rows
    assert (store.folder / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(TemporalLensError, match="already holds a finished store"):
        harvest_records(TINY.model_copy(update={"seed": 1}), store.folder)


@pytest.mark.parametrize("where", ["train_network", "_write_truth", "finish"])
def test_an_interrupted_harvest_starts_over(where: str, store: ActivationStore, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(r.StoreWriter if where == "finish" else r, where, interrupt)
        with pytest.raises(KeyboardInterrupt):
            harvest_records(TINY, folder)
    assert not (folder / "manifest.json").exists()
    again = harvest_records(TINY, folder)
    assert again.manifest == store.manifest
    assert (folder / "truth.json").read_bytes() == (store.folder / "truth.json").read_bytes()


def test_a_foreign_folder_is_left_alone(folder: Path) -> None:
    folder.mkdir()
    (folder / "truth.json").write_text("{}")
    with pytest.raises(TemporalLensError, match="is not empty"):
        harvest_records(TINY, folder)
    assert (folder / "truth.json").read_text() == "{}"


# Fields


LAYOUT = {"a": (1, 2, 3), "b": (4, 5), "c": (6, 7, 8, 9), "rest": (0, 10, 11)}
SEEN = np.arange(12) > 0


def columns_of(*features: tuple[int, ...]) -> np.ndarray:
    columns = np.zeros((12, len(features)), dtype=bool)
    for number, feature in enumerate(features):
        columns[list(feature), number] = True
    return columns


def scored(columns: np.ndarray) -> f.FieldScores:
    return f.compare(columns, columns.astype(float), SEEN, LAYOUT, "mask", np.random.default_rng(0))


def test_masks_that_know_the_layout_get_full_marks() -> None:
    scores = scored(columns_of((1, 2, 3), (4, 5), (6, 7, 8, 9), (10, 11)))
    assert scores.precision == scores.recall == scores.own_share == dict.fromkeys(LAYOUT, 1.0)
    assert scores.group == dict.fromkeys(LAYOUT, 1) and scores.shared_features == 0
    assert scores.null_mean_f1 < 0.8 and scores.mean_f1_p_value < 0.1


def test_masks_that_are_open_everywhere_get_no_credit() -> None:
    scores = scored(columns_of(*[tuple(range(1, 12))] * 5))
    assert scores.mean_f1 == scores.mean_own_share == 0 and scores.mean_f1_p_value == 1.0
    assert scores.shared_features == 5 and scores.mean_precision is None and scores.precision["b"] is None


def test_masks_of_one_column_fit_any_layout_and_prove_nothing() -> None:
    scores = scored(columns_of(*[(column,) for column in range(1, 12)]))
    assert scores.mean_f1 == 1 and scores.mean_f1_p_value == scores.mean_own_share_p_value == 1.0


def test_precision_recall_and_own_share_are_what_they_say() -> None:
    columns = columns_of((1, 2, 4), (4, 5, 6), (3, 7))
    fired = columns * np.array([1.0, 2.0, 3.0])
    scores = f.compare(columns, fired, SEEN, LAYOUT, "mask", np.random.default_rng(0))
    assert scores.precision["a"] == pytest.approx(2 / 3) and scores.recall["a"] == pytest.approx(2 / 3)
    assert scores.own_share["a"] == pytest.approx(2 / 5)  # the shared feature fires three times at column 3
    assert scores.precision["b"] == pytest.approx(2 / 3) and scores.recall["b"] == 1
    assert scores.own_share["b"] == pytest.approx(4 / 5)
    assert scores.precision["c"] is None and scores.recall["c"] == scores.f1["c"] == 0 and scores.shared_features == 1


def test_null_layouts_keep_the_lengths_of_runs() -> None:
    label = f.labels(LAYOUT, 12)
    for seed in range(20):
        null = f.shuffled(label, SEEN, np.random.default_rng(seed))
        assert np.bincount(null[1:]).tolist() == np.bincount(label[1:]).tolist() and null[0] == -1
        assert np.ptp(np.flatnonzero(null == 0)) == 2 and np.ptp(np.flatnonzero(null == 1)) == 1


def test_columns_come_from_gates_or_else_from_firing() -> None:
    fired, tokens = np.array([[9.0, 0], [10, 0], [0.5, 8]]), np.array([0.0, 10, 10])
    assert f.open_columns(None, fired, tokens).tolist() == [[False, False], [True, False], [False, True]]
    gates = np.array([[1.0, 1], [0.8, 0], [0.5, 1]])
    assert f.open_columns(gates, fired, tokens).tolist() == [[False, False], [True, False], [True, True]]


def test_fields_are_scored_from_a_store(store: ActivationStore) -> None:
    dictionary = BatchTopK(features=32, k=4).build(16, 43, torch.Generator().manual_seed(0))
    split = store.split(0.5, 0)
    scores = f.score_fields(dictionary, store, split.held_out)
    assert set(scores.precision) == set(FIELDS) and scores.columns_from == "firing"
    json.dumps(scores._asdict(), allow_nan=False)
    fired, tokens = f.count_firings(dictionary, store, split.held_out)
    assert tokens[0] == 0 and set(tokens[1:]) == {32.0} and fired.max() <= 32
    dictionary.threshold.fill_(0.999 * float(find_firings(dictionary, store, split.held_out).value.max()))
    with pytest.raises(TemporalLensError, match="no feature fires 20 times"):
        f.score_fields(dictionary, store, split.held_out)
    dictionary.threshold.fill_(1e9)
    with pytest.raises(TemporalLensError, match="no feature fires on these documents"):
        f.score_fields(dictionary, store, split.held_out)


def explained(x: Tensor, label: Tensor) -> float | None:
    """eta^2 of `label`, the characters of one column; None where `x` does not vary."""
    _, group = label.unique(return_inverse=True)
    counts = torch.bincount(group).double()
    total = (x - x.mean(0)).square().sum()
    if total <= 1e-9 * x.square().sum():
        return None
    means = x.new_zeros(len(counts), x.shape[1]).index_add_(0, group, x) / counts[:, None]
    return float((counts @ (means - x.mean(0)).square()).sum() / total)


def shares_of_characters(store: ActivationStore) -> tuple[list[float | None], list[float | None]]:
    """Of the variance in each column, what the character explains that was just read, and what the one explains that is to come."""
    rows = store.read(np.arange(store.sequences))
    x, tokens = rows.x.double().view(-1, store.positions, store.width), rows.token.view(-1, store.positions)
    read = [explained(x[:, column], tokens[:, column]) for column in range(store.positions)]
    return read, [explained(x[:, column], tokens[:, column + 1]) for column in range(store.positions - 1)]


def test_shares_of_characters_tell_what_was_read_from_what_is_to_come(store: ActivationStore) -> None:
    read, to_come = shares_of_characters(store)
    assert len(read) == len(to_come) + 1 == 43
    assert read[0] is None and read[4] is not None and 0 <= read[4] <= 1
    assert read[16] > 0.5 > to_come[16]  # type: ignore[operator]  # known at these columns


# The picture


def make_case(**other: object) -> Case:
    gates = np.zeros((43, 40))
    for number in range(40):
        gates[number + 1 : number + 4, number] = 1
    known = {"name": "Records", "gates": gates, "unexplained": 0.0009, "unmasked": 0.0015, "comparison": "plain"}
    return Case(**{**known, **other})  # type: ignore[arg-type]


def text_of(figure: Figure) -> str:
    return " ".join(" ".join(part.get_text().split()) for part in figure.findobj(Text))


def test_the_picture_says_what_is_open_and_what_it_bought() -> None:
    language = make_case(name="SmolLM2", gates=np.ones((128, 30)), unexplained=0.224, unmasked=0.22)
    figure = draw_two_cases(make_case(example=r.EXAMPLE, fields=FIELDS), language)
    said = text_of(figure)
    assert "Records: 7.1 % of the mask is open. It leaves 40 % less variance unexplained than plain" in said
    assert "SmolLM2: 100 % of the mask is open. It leaves 1.8 % more variance unexplained than plain" in said
    assert all(name in said for name in FIELDS if name != "separators") and "log scale" in said
    figure.canvas.draw()


def test_features_stand_in_order_of_where_they_are_open_and_dead_ones_do_not() -> None:
    case = make_case()
    shown = sorted_gates(make_case(gates=case.gates[:, ::-1], live=np.arange(40) > 0))
    assert shown.shape == (42, 39) and np.array_equal(shown, case.gates[1:, :39])


def test_an_equal_result_is_called_equal() -> None:
    assert "It leaves as much variance unexplained as plain" in effect(make_case(unexplained=0.1001, unmasked=0.1))
