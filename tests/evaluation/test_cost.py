"""Cost: known numbers of parameters, operations and codes."""

import numpy as np
import pytest
import torch
from tests.conftest import LENGTH, WIDTH

from made_results import make_run
from temporallens.activations.store import ActivationStore
from temporallens.dictionaries.base import ArmConfig, Dictionary
from temporallens.dictionaries.kinds import TFA, BatchTopK, TopK
from temporallens.errors import TemporalLensError
from temporallens.evaluation.cost import SECTION, CostPolicy, measure_cost
from temporallens.evaluation.results import marked
from temporallens.report.tables import dictionaries_table

FEATURES, K = 64, 4


def made(arm: ArmConfig) -> Dictionary:
    return arm.make(WIDTH, LENGTH, torch.Generator().manual_seed(0))


def test_a_dictionary_of_two_matrices_costs_two_products(store: ActivationStore) -> None:
    cost = measure_cost(made(TopK(features=FEATURES, k=K)), store, np.arange(40), CostPolicy(sequences=10))
    assert cost.parameters == 2 * FEATURES * WIDTH + FEATURES + WIDTH
    assert cost.flops == 2 * 2 * FEATURES * WIDTH
    assert cost.tokens == 10 * (LENGTH - 1)
    assert cost.l0 == cost.total_l0 <= K
    assert not cost.open_loop


def test_what_is_predicted_counts_beside_codes(store: ActivationStore) -> None:
    arm = TFA(features=FEATURES, k=K, novel="topk", bottleneck=8, heads=4)
    cost = measure_cost(made(arm), store, np.arange(40), CostPolicy())
    narrow = FEATURES // 8
    assert cost.parameters == FEATURES * WIDTH + WIDTH + FEATURES + 2 * narrow * (FEATURES + 1) + 2 * FEATURES * (FEATURES + 1)
    products = 4 * FEATURES * WIDTH + 2 * FEATURES * (FEATURES + narrow)  # encoder twice, decoder twice; attention's projections
    attention = (LENGTH + 1) * (narrow + FEATURES)
    assert cost.flops == 2 * (products + attention)
    assert cost.l0 <= K
    assert cost.total_l0 > 3 * K
    assert cost.open_loop


def test_tables_have_a_row_for_each_dictionary_and_results_mark_what_is_in_open_loop(store: ActivationStore) -> None:
    arms = {"a": BatchTopK(features=FEATURES, k=K), "b": TFA(features=FEATURES, k=K)}
    found = {name: measure_cost(made(arm), store, np.arange(4), CostPolicy()) for name, arm in arms.items()}
    (table,) = SECTION.tables(found)
    assert [row.head for row in table.rows] == ["a", "b"]
    assert table.rows[0].cells[:2] == ["3,160", "0.01"]


def test_names_of_open_loop_dictionaries_are_marked() -> None:
    runs = [make_run("batchtopk"), make_run("tfa")]
    assert [marked("mine", run) for run in runs] == ["mine", "mine (open loop)"]
    assert [row.head for row in dictionaries_table("entry", runs, {}).rows] == ["batchtopk", "tfa (open loop)"]


def test_nothing_to_count_is_refused(tmp_path) -> None:
    x, mask = np.ones((4, 2, WIDTH), dtype=np.float32), np.array([[1, 0], [1, 1], [1, 1], [1, 1]], dtype=bool)
    store = ActivationStore.from_arrays(x, tmp_path / "store", mask=mask)
    with pytest.raises(TemporalLensError, match="hold no usable row: no codes can be counted"):
        measure_cost(made(TopK(features=FEATURES, k=K)), store, np.arange(1), CostPolicy())
