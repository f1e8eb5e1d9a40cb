"""Settings: whoever makes them in Python is told in one sentence what is wrong, whatever model they are of."""

from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel, ValidationError

import temporallens
from temporallens.activations.language.harvest import HarvestPolicy
from temporallens.dictionaries.kinds import ARMS, BatchTopK, Positional, RandomMask
from temporallens.errors import TemporalLensError
from temporallens.evaluation.clusters.policy import ClustersPolicy
from temporallens.evaluation.model.fidelity import FidelityPolicy
from temporallens.evaluation.order.section import OrderPolicy
from temporallens.evaluation.positions.specialisation import PositionsPolicy
from temporallens.evaluation.probing.saebench import SparseProbingPolicy
from temporallens.evaluation.probing.section import ProbingPolicy
from temporallens.evaluation.scan import ScanPolicy
from temporallens.settings import Settings
from temporallens.study.config import Study
from temporallens.training.policy import TrainingPolicy


@pytest.mark.parametrize(
    ("settings", "fields", "sentence"),
    [
        (BatchTopK, {"features": 4, "k": 5}, "k = 5 codes per token cannot come from 4 features; give k at most 4"),
        (BatchTopK, {"features": 0}, "features is 0: input should be greater than or equal to 1"),
        (BatchTopK, {"k": True, "features": 4}, "k is True: a number or a word is needed here, neither True nor False"),
        (BatchTopK, {"k": np.True_, "features": 4}, "k is True: a number or a word is needed here, neither True nor False"),
        (BatchTopK, {"fetures": 4}, "BatchTopK has no setting 'fetures'; did you mean 'features'?"),
        (Positional, {"groups": "few"}, "groups is 'few': input should be a valid integer, unable to parse string as an integer or input"),
        (Positional, {"tau": float("nan")}, "tau is nan: input should be a finite number"),
        (RandomMask, {"openness": (0.5, 3)}, "openness.1 is 3: input should be less than or equal to 1"),
        (TrainingPolicy, {"steps": "many"}, "steps is 'many': input should be a valid integer"),
        (TrainingPolicy, {"learning_rate": -1}, "learning_rate is -1: input should be greater than 0"),
        (HarvestPolicy, {"model": "m"}, "HarvestPolicy needs the setting 'layer'"),
        (HarvestPolicy, {"model": "m", "layer": 0, "clock": "sentense"}, "clock: there is no clock 'sentense'; did you mean 'sentence'?"),
        (TrainingPolicy, {"steps": 10**400}, "steps: a number of more than 64 bits counts nothing here; give a smaller one"),
        (PositionsPolicy, {"seed": 2**63}, f"seed is {2**63}: input should be less than {2**63}"),
        (TrainingPolicy, {"data_seed": -1}, "data_seed is -1: input should be greater than or equal to 0"),
        (SparseProbingPolicy, {"random_seed": 1.5}, "random_seed is 1.5: input should be a valid integer"),
        (ScanPolicy, {"model": "m", "context_length": 2**63}, f"context_length is {2**63}: input should be less than or equal to 16777216"),
        (ScanPolicy, {"model": "m", "sequences": 1}, "sequences is 1: input should be greater than or equal to 2"),
        (FidelityPolicy, {"shifts": (1, "x")}, "shifts.1 is 'x': input should be a valid integer"),
        (ClustersPolicy, {"distance": "far"}, "distance is 'far': input should be 'jensen_shannon'"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_sentence(settings: type[Settings], fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(TemporalLensError) as error:
        settings(**fields)
    assert str(error.value).startswith(sentence)


@pytest.mark.parametrize(("policy", "needed"), [(ScanPolicy, {"model": "m"}), (OrderPolicy, {}), (ProbingPolicy, {})])
def test_what_only_computes_takes_dtype_for_what_it_computes_in(policy: Any, needed: dict[str, Any]) -> None:
    for name in ("dtype", "compute_dtype"):
        assert policy(**needed, **{name: "bfloat16"}).compute_dtype == "bfloat16"
        assert policy.model_validate({**needed, name: "float32"}, strict=True).model_dump()["compute_dtype"] == "float32"
    with pytest.raises(TemporalLensError, match="dtype is 'float64'"):
        policy(**needed, dtype="float64")


def test_another_level_of_an_arm_is_refused_alike() -> None:
    with pytest.raises(TemporalLensError, match="k = 9 codes per token cannot come from 8 features"):
        BatchTopK(features=8, k=2).at_level(9)


def test_within_a_larger_model_the_error_stays_with_the_model() -> None:
    with pytest.raises(ValidationError, match="k = 5 codes per token"):
        Study.model_validate({"name": "s", "activations": {}, "arms": {"a": {"kind": "batchtopk", "features": 4, "k": 5}}, "training": {}})


def test_all_that_is_set_is_of_one_base() -> None:
    assert all(issubclass(arm, Settings) for arm in ARMS.values())
    public = [getattr(temporallens, name) for name in temporallens.__all__]
    assert all(issubclass(one, Settings) for one in public if isinstance(one, type) and issubclass(one, BaseModel))
