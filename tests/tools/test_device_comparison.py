"""The comparison of devices: its studies can be done, and what differs is named."""

from pathlib import Path
from typing import Any

from tools.devices import AGREEMENT, SMALL, WHOLE, arms_of_every_kind, compared, study

from temporallens.dictionaries.kinds import ARMS, UNTRAINED
from temporallens.study.config import Study


def test_its_studies_can_be_done(tmp_path: Path) -> None:
    arms = arms_of_every_kind(256, 16)
    assert {arm["kind"] for arm in arms.values()} == ARMS.keys() - UNTRAINED
    every = study("every-arm", tmp_path, SMALL, arms=arms)
    every["training"] |= {"batches": "rows"}
    assert Study.model_validate(every).arms.keys() == arms.keys()
    for sizes in (SMALL, WHOLE):
        streamed = study("streamed", tmp_path, sizes)
        streamed["activations"]["gemma"] |= {"stream": True, "stored_every": 4}
        assert Study.model_validate(streamed).stream_of("gemma")


def test_what_differs_is_named() -> None:
    def of(fve: float, l0: float) -> dict[str, Any]:
        return {"fve": fve, "l0": l0, "tokens_per_second": 1.0}

    found = compared(
        {"a": of(0.8, 32), "b": of(0.8, 32), "c": of(0.8, 32)}, {"a": of(0.801, 32.1), "b": of(0.79, 32), "c": of(0.8, 40)}, AGREEMENT
    )
    assert found["beyond"] == ["b", "c"]
    assert compared({"a": of(0.8, 32)}, {"a": of(float("nan"), 32)}, AGREEMENT)["beyond"] == ["a"]
