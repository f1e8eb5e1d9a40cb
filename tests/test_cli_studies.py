"""The command line around studies: beginning one, what it can name, what a run found, its report, and JSON in place of tables."""

import json
import shlex
import webbrowser
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner, Result

import temporallens as tl
from temporallens.activations.clocks import CLOCKS
from temporallens.activations.language.shipped import MODELS, TEXTS
from temporallens.cli import app
from temporallens.dictionaries.kinds import ARMS
from temporallens.evaluation.sections import SECTIONS
from temporallens.study.models import model_sizes
from temporallens.study.reading import read_study
from temporallens.study.shipped import shipped_studies
from tiny_models import LAYERS
from tiny_studies import draw_headline_alone

Write = Callable[..., Path]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refusal(*arguments: object) -> str:
    result = call(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    return result.stderr.splitlines()[-1].removeprefix("error: ")


def test_lists_have_every_name_with_a_line() -> None:
    lists = json.loads(call("list", "--json").stdout)
    assert {what: set(lines) for what, lines in lists.items()} == {
        "models": set(MODELS),
        "texts": set(TEXTS),
        "arms": set(ARMS),
        "clocks": {*CLOCKS, "modulo", "from_end", "since", "field", "product"},
        "sections": set(SECTIONS),
        "studies": set(shipped_studies()),
    }
    assert all(len(line) > 8 and "\n" not in line and not line.endswith(".") for lines in lists.values() for line in lines.values())


@pytest.mark.parametrize(("typed", "offered"), [("run quick", "quickstart"), ("pro", "probe"), ("run x --dry", "--dry-run")])
def test_the_shell_completes_commands_options_and_studies(typed: str, offered: str) -> None:
    asked = {"_TEMPORALLENS_COMPLETE": "complete_bash", "COMP_WORDS": f"temporallens {typed}", "COMP_CWORD": str(len(typed.split()))}
    assert CliRunner().invoke(app, env=asked, prog_name="temporallens").stdout.split() == [offered]


def test_one_list_is_printed_alone() -> None:
    printed = call("list", "arms").stdout
    assert all(f"  {kind} " in printed for kind in ARMS)
    assert "minilm-l6" not in printed and "minilm-l6" in call("list").stdout
    assert refusal("list", "armz") == "there is no list of 'armz'; did you mean 'arms'?"


def test_init_writes_a_study_that_is_read_and_runs_nothing(sources: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "mine.yaml"
    result = call("init", sources["model"], "--text", sources["text"], "--out", out)
    assert (result.exit_code, result.stdout) == (0, f"{out}\n"), result.output
    study = read_study(out).study
    (entry,) = study.from_models().values()
    assert (entry.model, entry.text, entry.layer) == (str(sources["model"]), str(sources["text"]), LAYERS // 2)
    assert [arm.kind for arm in study.arms.values()] == ["batchtopk", "position_mean", "positional"]
    assert study.arms["positional"].centre == "position_scaled"
    values = [line for line in out.read_text("utf-8").splitlines() if line and not line.startswith("#")]
    assert sum(" # " in line for line in values) > len(values) / 3
    assert "{" not in out.read_text("utf-8").replace("{}", "")
    assert "train/" in call("run", out, "--dry-run").stdout
    assert list(tmp_path.iterdir()) == [out]


def test_init_takes_a_place_and_writes_over_nothing(tmp_path: Path) -> None:
    out = tmp_path / "mine.yaml"
    assert call("init", "smollm2-135m", "--layer", "blocks.3.hook_mlp_out", "--out", out).exit_code == 0
    content = out.read_text("utf-8")
    assert yaml.safe_load(content)["activations"] and read_study(out).study.from_models().popitem()[1].layer == "blocks.3.hook_mlp_out"
    assert (
        refusal("init", "minilm-l6", "--out", out)
        == f"{out} is there already, and init writes over nothing; choose another file with --out"
    )
    assert out.read_text("utf-8") == content


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["owner/model"], "how many layers 'owner/model' has is not known before it is fetched: give --layer"),
        (["minilm-l6", "--layer", "6"], "layer 6 is out of range: "),
        (["minilm-l6", "--text", "no/such/text.txt"], "there is no text at "),
    ],
)
def test_init_refuses_what_a_run_would(arguments: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    assert refusal("init", *arguments, "--out", tmp_path / "mine.yaml").startswith(sentence)
    assert not (tmp_path / "mine.yaml").exists()


def test_every_command_has_help_and_a_line_in_the_readme() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
    block = readme.partition("## On the command line")[2].partition("```\n")[2].partition("```")[0]
    for command in app.registered_commands:
        name = command.name or command.callback.__name__
        assert command.callback.__doc__, name
        assert any(name in line.split() for line in block.splitlines()), name


def test_schema_is_json() -> None:
    assert json.loads(call("schema").stdout)["properties"]["training"]


@pytest.fixture
def run(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    draw_headline_alone(monkeypatch)
    result = call("run", write(), "--out", tmp_path / "run", "--set", "training.steps=8", "--json")
    assert result.exit_code == 0, result.output
    assert {row["training_steps"] for row in json.loads(result.stdout)["runs"]} == {8}
    return tmp_path / "run"


def test_a_finished_run_is_shown_and_opened(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = call("show", run)
    assert shown.exit_code == 0 and shown.stdout.startswith("tiny: held-out documents")
    assert "One seed: no interval, so no difference between arms is established." in shown.stdout
    report = (run / "report.html").read_text("utf-8")
    found = json.loads(call("show", run, "--json").stdout)
    assert [answer["name"] for answer in found["answers"]] == ["low", "high"]
    assert all(answer["sentence"] in shown.stdout and answer["sentence"] in report for answer in found["answers"])
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    result = call("open", run)
    assert (result.exit_code, result.stdout, opened) == (0, f"{run / 'report.html'}\n", [(run / "report.html").resolve().as_uri()])
    (run / "report.html").unlink()
    assert refusal("open", run) == f"{run} has no report; 'temporallens report {run}' writes it"
    assert len(opened) == 1
    plan = json.loads(call("run", run, "--dry-run", "--json").stdout)  # the change stands in the copy: only the report is to be done
    assert [stage["stage"] for stage in plan["stages"] if not stage["finished"]] == ["report"]


def test_what_is_no_run_is_not_shown(tmp_path: Path) -> None:
    assert refusal("show", tmp_path) == f"{tmp_path / 'results.json'} does not exist: it should be the results of a study"
    assert "has no report" in refusal("open", tmp_path / "none")


def test_a_scan_is_printed_as_the_json_that_it_writes(sources: dict[str, Path], tmp_path: Path) -> None:
    asked = ("scan", sources["model"], "--text", sources["text"], "--context-length", 16, "--sequences", 4, "--out", tmp_path / "scan")
    printed = json.loads(call(*asked, "--json").stdout)
    written = json.loads((tmp_path / "scan" / "scan.json").read_text("utf-8"))
    assert printed == {key: value for key, value in written.items() if key != "checksum"}


def test_init_knows_a_store_and_its_positions(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(60, 6, 24)).astype(np.float32)
    positions, names = np.tile(np.arange(6)[::-1], (60, 1)), list("abcdef")
    tl.ActivationStore.from_arrays(x, tmp_path / "roles", positions=positions, position_names=names, exclude_first=False)
    tl.ActivationStore.from_arrays(x, tmp_path / "plain")
    for store, groups in (("roles", "positions"), ("plain", 5)):
        out = tmp_path / f"{store}.yaml"
        assert call("init", tmp_path / store, "--out", out).exit_code == 0
        study = read_study(out).study
        assert study.arms["positional"].groups == groups and study.arms["positional"].features == 96
        assert study.training.batch_size * 4 <= 360 and not study.scans
        planned = call("run", out, "--dry-run").stdout.replace("\n", " ")
        assert "train/" in planned and "some 360 activations, so that training goes over them" in planned
        assert "of 96 features fires " in planned
    assert refusal("init", tmp_path / "roles", "--text", "sotu", "--out", tmp_path / "other.yaml").endswith(
        "is a store, which has its activations: leave out --layer and --text"
    )


@pytest.mark.parametrize("name", ["100", "true", "ha #sh: {}", "*star", "& more", "tail:", "qu'o\"te", "two\nlines", "ümläut"])
def test_init_quotes_what_a_store_is_called(name: str, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(30, 6, 8)).astype(np.float32)
    store, out = tl.ActivationStore.from_arrays(x, tmp_path / name).folder, tmp_path / f"{name}.yaml"
    result = call("init", store, "--out", out)
    assert result.exit_code == 0, result.output
    study = read_study(out).study
    (entry,) = study.activations.values()
    assert entry.path == str(store) and study.name in study.activations
    typed = out.read_text("utf-8").splitlines()[1].removeprefix("#").removesuffix("prints the plan and touches nothing").rstrip()
    assert shlex.split(typed) == ["temporallens", "run", str(out).replace("\n", " "), "--dry-run"]


@pytest.mark.parametrize(("documents", "share", "measured"), [(600, 0.1, True), (60, 0.5, True), (30, 0.5, False)])
def test_init_holds_out_enough_of_a_small_store(documents: int, share: float, measured: bool, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(documents, 6, 8)).astype(np.float32)
    tl.ActivationStore.from_arrays(x, tmp_path / "small")
    assert call("init", tmp_path / "small", "--out", tmp_path / "mine.yaml").exit_code == 0
    study = read_study(tmp_path / "mine.yaml").study
    assert study.training.held_out == share
    assert (study.evaluation.positions is not None) is measured


def test_arms_of_a_first_study_are_compared_at_equal_l0(sources: dict[str, Path], tmp_path: Path) -> None:
    call("init", sources["model"], "--text", sources["text"], "--out", tmp_path / "mine.yaml")
    study = read_study(tmp_path / "mine.yaml").study
    low, high = study.levels["k"]
    assert 1 <= low < high and len(study.trainings()) == 6
    assert all(arm.features < 10 * model_sizes(str(sources["model"])).width for arm in study.arms.values())


def test_scans_have_folders_of_their_own_and_leave_no_mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).normal(size=(30, 6, 24)).astype(np.float32)
    tl.ActivationStore.from_arrays(x, tmp_path / "mine")
    old = tmp_path / "runs" / "scan-mine" / "figures" / "beforehand.png"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"of a scan before")
    assert call("scan", "mine").stdout.splitlines()[-1] == "runs/scan-mine/figures/scan.png"
    assert not old.exists() and (old.parent / "scan.png").exists()


def test_the_version_and_a_page_without_a_run_are_told(tmp_path: Path) -> None:
    assert call("--version").stdout == f"temporallens {tl.__version__}\n"
    (tmp_path / "report.html").write_text("several runs")
    assert refusal("show", tmp_path).endswith(f"and no run; 'temporallens open {tmp_path}' opens it")
