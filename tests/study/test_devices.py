"""A study on several processes and on devices that are not here, on paper."""

import json
from pathlib import Path

import pytest
from tools.scale import BEGIN, END, PAGE, table
from typer.testing import CliRunner

from temporallens.cli import app
from temporallens.errors import TemporalLensError
from temporallens.study.devices import ADAM_BYTES, DEVICES, GLOO_BYTES, LINKS_REACH, PRODUCTS_REACH, Company, Traffic, device_named
from temporallens.study.models import PUBLISHED
from temporallens.study.plan import PlanLine, most_memory, plan_study
from temporallens.study.reading import read_study

STUDIES = Path(__file__).parents[2] / "studies"
STREAM, STORED = STUDIES / "gemma-2-2b-stream.yaml", STUDIES / "gemma-2-2b.yaml"
H100 = DEVICES["h100"]


@pytest.fixture(autouse=True)
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an earlier fetch left in a cache is not read."""
    monkeypatch.setattr("temporallens.study.models._in_hub_cache", lambda *_: None)


def test_the_table_of_a_billion_tokens_is_what_the_plan_gives() -> None:
    assert f"{BEGIN}\n\n{table()}\n\n{END}" in PAGE.read_text("utf-8")


def test_a_plan_of_many_devices_follows_its_formulas(tmp_path: Path) -> None:
    plan = plan_study(read_study(STREAM), tmp_path, Company(8, H100))
    lines = {line.stage.name: line for line in plan.lines}
    harvest, line = lines["harvest/layer-19"], lines["train/layer-19/batchtopk-seed0"]
    width, hidden, _, _, vocabulary = PUBLISHED["google/gemma-2-2b"]
    entries, batch, tokens = width * 16_384, 8192, 122_000 * 8192
    assert line.traffic == Traffic(8 * entries, 4 * 64 * batch, 2 * width * batch)
    assert line.memory == (16 + 16 // 8) * entries
    assert harvest.memory == 2 * (20 * (4 * width**2 + 3 * width * hidden) + vocabulary * width)
    assert most_memory(plan.lines) == harvest.memory + 2 * line.memory
    products = PRODUCTS_REACH * 989e12 / 2
    assert line.course is not None
    assert line.course.reading == pytest.approx(tokens * 20 * (4 * width**2 + 3 * width * hidden) / 8 / products / 2)
    exchanged = (2 * 8 * entries + 4 * 64 * batch) * 7 / 8 / (LINKS_REACH * 450e9)
    step = 2.7 * batch * entries / 8 / products + ADAM_BYTES * 2 * entries / 8 / 3.35e12 + exchanged
    assert line.course.learning == pytest.approx(122_000 * step)
    assert line.course.feeding == pytest.approx((tokens / 600_000 + 3 * 2 * width * tokens / GLOO_BYTES) / 2)
    assert line.seconds == line.course.reading + max(line.course.feeding, line.course.learning)


def test_dictionaries_that_are_dealt_exchange_nothing(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("""\
name: dealt
activations:
  world: {source: world, width: 16, features: 24, positions: 16, sequences: 64, start: 3, periods: [4], active: 2, highest_rate: 0.2}
arms: {batchtopk: {kind: batchtopk, features: 32, k: 3}}
training: {steps: 1000, batch_size: 64}
seeds: [0, 1, 2]
""")

    def trained(company: Company) -> list[PlanLine]:
        return [line for line in plan_study(read_study(path), tmp_path / "run", company).lines if line.stage.kind == "train"]

    (one, *_), two, four = trained(Company(1, H100)), trained(Company(2, H100)), trained(Company(4, H100))
    assert len(two) == 3 and not any(line.traffic for line in two) and all(line.traffic for line in four)
    assert sum(line.seconds or 0 for line in two) == pytest.approx(2 * (one.seconds or 0))  # one process trains two, the other one
    assert most_memory(two) == pytest.approx(2 * (one.memory or 0), abs=3)
    assert four[0].memory == (8 + 8 // 4) * 2 * 16 * 32


def test_between_hosts_the_slower_link_counts_and_alone_nothing_is_exchanged() -> None:
    traffic = Traffic(10**9, 0, 10**6)
    assert Company(1, H100).exchanging(traffic) == Company(1).spreading(traffic) == 0
    assert Company(9, H100).exchanging(traffic) == pytest.approx(2e9 * 8 / 9 / (LINKS_REACH * 400e9))
    assert Company(2).exchanging(traffic) == pytest.approx(1e9 / GLOO_BYTES)


@pytest.mark.slow
def test_a_dry_run_for_processes_needs_no_model_and_says_what_it_rests_on() -> None:
    found = CliRunner().invoke(app, ["run", str(STORED), "--dry-run", "--processes", "8", "--device", "h100"])
    assert found.exit_code == 0, found.output
    for words in ("memory", "exchanged a step", "8 x H100 SXM, not measured by us", "google/gemma-2-2b is not at hand", "has 80.0 GB"):
        assert words in found.stdout
    assert "?" not in found.stdout
    here = CliRunner().invoke(app, ["run", str(STORED), "--dry-run", "--processes", "8", "--json"])
    plan = json.loads(here.stdout)
    assert plan["processes"] == 8
    (line,) = (stage for stage in plan["stages"] if stage["stage"] == "train/layer-19/positional-seed0")
    assert line["traffic"] == {"gradients": 8 * 2304**2, "candidates": 4 * 32 * 1024, "stream": 0} and line["memory"] == 18 * 2304**2


def test_a_device_without_figures_is_refused() -> None:
    with pytest.raises(TemporalLensError, match=r"there are no figures of a device 'h10' to plan with; did you mean 'h100'\?"):
        device_named("h10")
