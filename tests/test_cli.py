"""The command line: what it prints, its exit codes, and that a mistake is one sentence and leaves nothing behind."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from pkgutil import resolve_name

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, Gemma2Config
from typer.testing import CliRunner, Result

from temporallens.activations.store import ActivationStore
from temporallens.cli import GO_ON, app
from temporallens.files import locked, read_json, write_json
from temporallens.study.reading import read_copy
from tiny_models import FAMILIES, LAYERS, WIDTH, tiny_model, tiny_tokenizer
from tiny_studies import draw_headline_alone

STUDIES = Path(__file__).parents[1] / "studies"
COMMANDS = (
    "run",
    "harvest",
    "train",
    "evaluate",
    "figures",
    "report",
    "probe",
    "scan",
    "import",
    "inspect",
    "export",
    "dictionary",
    "init",
)
TEXT = "".join(
    json.dumps({"text": f"Document {number} says that rain fell, that the river rose, and that {number} people went home."}) + "\n"
    for number in range(12)
)
STUDY = """\
name: cli
threads: 1
activations:
  only: {{model: {model}, text: {text}, layer: 1, context_length: 16, batch_size: 4, dtype: float32}}
arms:
  positional: {{kind: positional, features: 32, k: 4, groups: 3}}
training: {{steps: 10, batch_size: 32, log_every: 5, checkpoint_every: 5, held_out: 0.3}}
"""


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refusal(*arguments: object) -> str:
    """The one sentence with which a call is refused, after what it said of the stages before."""
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    *before, sentence = result.stderr.splitlines()
    assert all(line.endswith(("done", "skipped")) for line in before)
    assert sentence.startswith("error: ")
    return sentence.removeprefix("error: ")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def study(tmp_path: Path, model: Path) -> Path:
    text = tmp_path / "text.jsonl"
    text.write_text(TEXT)
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.format(model=model, text=text))
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    assert command in call("--help").stdout
    result = call(command, "--help")
    assert result.exit_code == 0
    assert "--out" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["runn"], "there is no command 'runn'; did you mean 'run'?"),
        (
            ["x"],
            "there is no command 'x'; it is one of: dictionary, evaluate, export, figures, harvest, import, init, inspect",
        ),
        (["--x", "run"], "'root' has no option '--x'; it is one of: --help, --install-completion, --show-completion"),
        (["run"], "missing argument 'STUDY'; 'root run --help' says what belongs to it"),
        (["report"], "missing argument 'STUDY...'; 'root report --help' says what belongs to it"),
        (["import", "x.npy"], "missing option '--out'; 'root import --help' says what belongs to it"),
        (["import", "x.npy", "--out"], "option '--out' requires an argument; 'root import --help' says what belongs to it"),
        (["--help=x"], "option '--help' does not take a value; 'root --help' says what belongs to it"),
        (["run", "study.yaml", "--dry-run=x"], "option '--dry-run' does not take a value; 'root run --help' says what belongs to it"),
        (["run", "study.yaml", "--dryrun"], "'root run' has no option '--dryrun'; did you mean '--dry-run'?"),
        (["run", "study.yaml", "-x"], "'root run' has no option '-x'; it is one of: --device, --dry-run, --help, --json, --model, --out"),
        (["run", "study.yaml", "--dry-run", "--processes", "0"], "invalid value for '--processes': "),
        (["run", "study.yaml", "--dry-run", "--processes", "two"], "invalid value for '--processes': "),
        (["run", "study.yaml", "--processes", "2"], "--processes and --device are for the plan, and go with --dry-run: torchrun starts"),
        (["run", "study.yaml", "other.yaml"], "got unexpected extra argument(s) (other.yaml); 'root run --help' says what belongs to it"),
        (["scan", "m", "--sequences", "few"], "invalid value for '--sequences': "),
        (["probe", "x", "--layer", "x"], "'x' names no place in a model: a number is the residual stream"),
        (["run", "study.yaml", "--out", ""], "a path is empty: it should name a file or folder ('.' is the current one)"),
        (["run", ""], "a path is empty: it should name a file or folder"),
        (["import", "", "--out", "x"], "a path is empty: it should name a file or folder"),
        (["import", "x.npy", "--out", "x", "--mask", ""], "a path is empty: it should name a file or folder"),
        (["scan", "m", "--out="], "a path is empty: it should name a file or folder"),
        (["scan", "", "--out", "x"], "the name of the model is empty: "),
        (["scan", "smollm2-135m", "--text", "", "--out", "x"], "the name of the text is empty: "),
    ],
)
def test_a_mistake_on_the_command_line_is_one_sentence(
    arguments: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.ones((2, 3, 4), np.float32))
    assert refusal(*arguments).startswith(sentence)
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


def test_without_a_command_there_is_help() -> None:
    result = call()
    assert (result.exit_code, "error" in result.output) == (2, False)
    assert all(command in result.output for command in COMMANDS)


def test_the_stages_one_at_a_time_end_where_run_ends(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert call("harvest", study, "--out", out).exit_code == 0
    assert (out / "stores" / "only" / "manifest.json").exists()
    assert not (out / "arms").exists()
    assert call("train", out).exit_code == 0
    assert not (out / "evaluation").exists()
    result = call("evaluate", out)
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (0, str(out / "results.json"))
    assert call("figures", out).exit_code == 0
    result = call("report", out)
    assert result.stdout.splitlines()[-1] == str(out / "report.html")
    assert call("run", study, "--out", out).stdout == result.stdout


def test_run_prints_a_table_and_the_path_of_the_report(study: Path, tmp_path: Path) -> None:
    result = call("run", study, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    heading, *_, path = result.stdout.strip().splitlines()
    assert heading.startswith("cli: held-out documents, position 0 apart")
    assert Path(path).is_file()
    for word in ("FVE", "L0", "openness", "seconds", "only", "positional"):
        assert word in result.stdout


def test_a_dry_run_prints_the_plan_and_writes_nothing(study: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    result = call("run", study, "--out", tmp_path / "out", "--dry-run")
    assert result.exit_code == 0, result.output
    for word in ("harvest/only", "train/only/positional-seed0", "report", "to do", "0 of 6 stages are finished", "GFLOP/s"):
        assert word in result.stdout
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_of_the_quickstart_needs_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEMPORALLENS_CACHE", str(tmp_path / "cache"))
    result = call("run", STUDIES / "quickstart.yaml", "--out", tmp_path / "out", "--dry-run")
    assert result.exit_code == 0, result.output
    unknown = [line for line in result.stdout.splitlines() if "?" in line]
    assert all(line.split()[0].startswith("measure/") for line in unknown if line.split()[0].count("/"))
    assert not (tmp_path / "cache").exists()


# Mistakes


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("groups: 3", "grups: 3", "unknown key 'grups' in arms.positional; did you mean 'groups'?"),
        ("layer: 1", "layer: 4", "layer 4 is out of range: "),
        ("context_length: 16", "context_length: 65", "has 64 positions"),
        ("text.jsonl", "none.jsonl", "there is no text at "),
        ("model: /", "model: /nowhere/", "there is no model at "),
        ("steps: 10", "steps: 0", "training.steps is 0: input should be greater than or equal to 1"),
    ],
)
def test_a_mistake_in_a_study_is_one_sentence_and_leaves_no_data(study: Path, tmp_path: Path, old: str, new: str, sentence: str) -> None:
    text = study.read_text()
    assert old in text
    study.write_text(text.replace(old, new))
    assert sentence in refusal("run", study, "--out", tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("groups: 3", "groups: 30", "arms.positional does not fit activations.only: 30 groups cannot divide 16 positions"),
        ("groups: 3", "groups: -1", "arms.positional does not fit activations.only: -1 groups cannot divide 16 positions"),
        ("layer: 1", "layer: 1, column: txt", "has no column 'txt'; did you mean 'text'?"),
        ("layer: 1", "layer: 1, clock: sentense", ":4: activations.only.clock: there is no clock 'sentense'; did you mean 'sentence'?"),
        ("layer: 1", "layer: -1", "layer -1 is out of range"),
        ("steps: 10", "steps: 10, learning_rate: .inf", "training.learning_rate is inf: input should be a finite number"),
        ("batch_size: 32", "batch_size: -32", "training.batch_size is -32: input should be greater than or equal to 1"),
        ("text.jsonl", "empty.txt", "empty.txt' holds no words"),
        ("model: /", "model: /nowhere/", "there is no model at "),
    ],
)
def test_what_can_be_seen_beforehand_is_refused_before_anything_is_written(
    study: Path, tmp_path: Path, old: str, new: str, sentence: str
) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    text = study.read_text()
    assert old in text
    study.write_text(text.replace(old, new))
    for dry in ([], ["--dry-run"]):
        assert sentence in refusal("run", study, "--out", tmp_path / "out", *dry)
    assert not (tmp_path / "out").exists()


def test_a_missing_study_is_named(tmp_path: Path) -> None:
    assert "does not exist: it should be a study file" in refusal("run", tmp_path / "none.yaml")


def test_an_empty_text_is_refused(study: Path, tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_text("\n\n")
    assert "text.jsonl" in refusal("run", study, "--out", tmp_path / "out")


def test_a_model_without_weights_is_refused(study: Path, tmp_path: Path, model: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((model / "config.json").read_bytes())
    assert "is a model directory without weights" in refusal("run", study, "--model", bare, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_with_damaged_weights_is_refused(study: Path, tmp_path: Path, model: Path) -> None:
    damaged = Path(shutil.copytree(model, tmp_path / "damaged"))
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "damaged are truncated or damaged" in refusal("run", study, "--model", damaged, "--out", tmp_path / "out")
    weights.unlink()
    tensors = load_file(model / "model.safetensors")
    next(tensor for name, tensor in tensors.items() if "layers.1." in name).fill_(torch.nan)
    save_file(tensors, weights, {"format": "pt"})
    text = study.parent / "text.jsonl"
    scan = ("scan", damaged, "--text", text, "--context-length", 16, "--out", tmp_path / "scan")
    assert "damaged hold NaN or infinity at layer 1" in refusal(*scan)
    assert not (tmp_path / "scan").exists()
    assert "damaged hold NaN or infinity at layer 1" in refusal("run", study, "--model", damaged, "--out", tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_a_model_without_tokenizer_is_refused(study: Path, tmp_path: Path, model: Path) -> None:
    mute = Path(shutil.copytree(model, tmp_path / "mute", ignore=shutil.ignore_patterns("tokenizer*")))
    assert "mute is a model directory without a tokenizer" in refusal("run", study, "--model", mute, "--out", tmp_path / "out")


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_an_output_folder_that_cannot_be_one_is_refused(
    study: Path, tmp_path: Path, dry: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert f"{study} is a file; choose another output folder" in refusal("run", study, "--out", study, *dry)
    closed = tmp_path / "closed"
    closed.mkdir()

    def deny(path: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "iterdir", deny)  # tests may run as root, whom no folder is closed to
    assert f"cannot write {closed}: permission is denied" in refusal("run", study, "--out", closed, *dry)


def test_one_document_cannot_be_divided(study: Path, tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_text(TEXT.splitlines()[0] + "\n")
    assert "text.jsonl is one document, and documents are divided" in refusal("run", study, "--out", tmp_path / "out")
    assert not (tmp_path / "out" / "results.json").exists()


def test_a_truncated_shard_and_a_store_of_another_version_are_refused(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert call("harvest", study, "--out", out).exit_code == 0
    store = out / "stores" / "only"
    shard = next(store.glob("shard-*"))
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    sentence = refusal("train", out)
    assert f"shard {shard} has {len(content) - 1} bytes instead of {len(content)}" in sentence
    assert sentence.endswith(f"; remove {store} and run again")
    shard.write_bytes(content)
    manifest = store / "manifest.json"
    values = json.loads(manifest.read_text()) | {"format": "temporallens.store/9"}
    del values["checksum"]
    write_json(manifest, values)
    assert "has format 'temporallens.store/9'" in refusal("train", out)
    shutil.rmtree(store)  # as the sentences say
    assert call("train", out).exit_code == 0


def test_the_folder_of_another_study_is_refused(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert call("harvest", study, "--out", out).exit_code == 0
    study.write_text(study.read_text().replace("name: cli", "name: other"))
    assert f"{out} holds the study 'cli', not 'other'" in refusal("run", study, "--out", out)
    assert f"{out} holds the study 'cli', not 'other'" in refusal("run", study, "--out", out, "--dry-run")


def test_a_folder_in_use_is_refused(study: Path, tmp_path: Path) -> None:
    with locked(tmp_path / "out"):
        assert "is in use by another temporallens process" in refusal("run", study, "--out", tmp_path / "out")


def test_a_full_disk_is_told_with_the_path(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("temporallens.files.os.fsync", full)
    sentence = refusal("run", study, "--out", tmp_path / "out")
    assert sentence.startswith(f"cannot write {tmp_path / 'out' / 'study.yaml'}: no space is left on the disk")
    assert not (tmp_path / "out" / "study.yaml").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="limits of the file size are POSIX")
def test_a_shard_that_does_not_fit_is_told_with_the_path_and_written_later(study: Path, tmp_path: Path) -> None:
    """A limit on the size of files is a full disk that a test may have: the same write fails half way."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        sentence = refusal("run", study, "--out", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sentence.startswith(f"cannot write {tmp_path / 'out' / 'stores' / 'only' / 'shard-00000.safetensors'}: ")
    assert not [path for path in (tmp_path / "out" / "stores").rglob("*") if path.is_file() and path.name != ".lock"]
    assert call("run", study, "--out", tmp_path / "out").exit_code == 0


# Ends


def stopped(monkeypatch: pytest.MonkeyPatch, study: Path, number: signal.Signals) -> Result:
    """The end of a run to which a signal comes."""
    monkeypatch.setattr("temporallens.study.run.run_study", lambda *_arguments, **_named: signal.raise_signal(number))
    return call("run", study)


def test_interrupted_and_terminated_runs_say_how_to_go_on(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = stopped(monkeypatch, study, signal.SIGINT)
    assert (result.exit_code, result.stderr) == (130, f"interrupted: {GO_ON}\n")
    before = signal.getsignal(signal.SIGTERM)
    result = stopped(monkeypatch, study, signal.SIGTERM)
    assert (result.exit_code, result.stderr) == (143, f"terminated: {GO_ON}\n")
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("seconds", [0, 15], ids=["at the end", "in the middle"])
def test_a_signal_that_comes_in_a_finaliser_is_not_lost(
    study: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int, seconds: float
) -> None:
    class Finalised:
        def __del__(self) -> None:
            signal.raise_signal(number)

    def run(*_arguments: object, **_named: object) -> None:
        Finalised()  # what its end raises, Python ignores
        time.sleep(seconds)

    monkeypatch.setattr("temporallens.study.run.run_study", run)
    monkeypatch.setattr("temporallens.cli._print_results", lambda *_arguments: None)
    started = time.monotonic()
    result = call("run", study)
    assert (result.exit_code, result.stderr.splitlines()[-1].endswith(GO_ON)) == (code, True)
    assert time.monotonic() - started < 10


def test_other_errors_of_finalisers_are_reported_as_ever(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Finalised:
        def __del__(self) -> None:
            raise ZeroDivisionError

    reported: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: reported.append(unraisable.exc_type.__name__))
    monkeypatch.setattr("temporallens.study.run.run_study", lambda *_arguments, **_named: Finalised() and None)
    monkeypatch.setattr("temporallens.cli._print_results", lambda *_arguments: None)
    assert call("run", study).exit_code == 0
    assert reported == ["ZeroDivisionError"]


def test_a_bug_keeps_its_traceback(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object, **_named: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("temporallens.study.run.run_study", fail)
    assert isinstance(call("run", study).exception, ZeroDivisionError)


STOPPED_IN = [
    "study.run.scan_policy",
    "activations.writer.StoreWriter.append",
    "activations.writer.StoreWriter.finish",
    "training.trainee.Trainee.step",
    "training.finishing.save_dictionary",
    "study.run.evaluate_reconstruction",
    "study.run.assemble",
    "study.pictures.draw_position_analysis",
    "study.run.write_report",
]
"""One function of every stage."""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_study_that_is_stopped_in_every_stage_ends_in_the_same_bits(
    study: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    text = study.read_text().replace("arms:", f"scans: [{{model: {model}, text: {tmp_path / 'text.jsonl'}, context_length: 16}}]\narms:")
    study.write_text(text)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert call("run", study, "--out", whole).exit_code == 0
    for place in STOPPED_IN:
        with monkeypatch.context() as patch:
            stop_in(patch, f"temporallens.{place}", number)
            result = call("run", study, "--out", parts)
        assert (result.exit_code, result.stderr.splitlines()[-1].endswith(GO_ON)) == (128 + number, True), (place, result.output)
        assert (parts / "report.html").exists() == (place == STOPPED_IN[-1])
    assert call("run", study, "--out", parts).exit_code == 0
    timed = {"timing.json", "report.html"}
    assert contents(parts, timed) == contents(whole, timed)


def stop_in(patch: pytest.MonkeyPatch, name: str, number: signal.Signals) -> None:
    """Let the signal come when the function of that name has done its work."""
    owner, _, attribute = name.rpartition(".")
    original = getattr(resolve_name(owner), attribute)

    def stopping(*arguments: object, **named: object) -> object:
        result = original(*arguments, **named)
        os.kill(os.getpid(), number)
        return result

    patch.setattr(name, stopping)


def contents(folder: Path, without: set[str]) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in without | {".lock"})
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "temporallens", *map(str, arguments)]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_training_that_was_stopped_goes_on_to_the_same_bits(study: Path, tmp_path: Path, number: int, code: int) -> None:
    study.write_text(study.read_text().replace("steps: 10", "steps: 1500").replace("checkpoint_every: 5", "checkpoint_every: 50"))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    process = subprocess.Popen(command("run", study, "--out", parts), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while not list((parts / "arms").rglob("checkpoint-*")):
        assert process.poll() is None, "it ended before it could be stopped"
        time.sleep(0.01)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert stderr.splitlines()[-1].endswith(GO_ON)
    assert not (parts / "results.json").exists()
    for out in (parts, whole):
        subprocess.run(command("run", study, "--out", out), check=True, capture_output=True)
    weights = Path("arms", "only", "positional-seed0", "sae_weights.safetensors")
    assert (parts / weights).read_bytes() == (whole / weights).read_bytes()
    assert (parts / "results.json").read_bytes() == (whole / "results.json").read_bytes()


# Beside studies


def test_scan_prints_eta2_by_layer_and_draws_it(model: Path, study: Path, tmp_path: Path) -> None:
    text = study.parent / "text.jsonl"
    result = call("scan", model, "--text", text, "--context-length", 16, "--sequences", 8, "--out", tmp_path / "scan")
    assert result.exit_code == 0, result.output
    for word in ("layer", "index", "sentence", "embed", "norm"):
        assert word in result.stdout
    assert result.stdout.splitlines()[-1] == str(tmp_path / "scan" / "figures" / "scan.png")
    assert (tmp_path / "scan" / "figures" / "scan.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "scan" / "scan.json").read_text())["layers"][0] == "embed"


def test_paths_may_begin_with_the_home_folder(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shells leave `~` alone in `--out=~/x`."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    (home / "study.yaml").write_text(study.read_text().replace(str(tmp_path / "text.jsonl"), "~/text.jsonl"))
    (home / "text.jsonl").write_text(TEXT)
    dry = call("run", "~/study.yaml", "--out=~/run", "--dry-run")
    assert dry.exit_code == 0 and "0 of" in dry.stdout, dry.output
    result = call("harvest", "~/study.yaml", "--out=~/run")
    assert result.exit_code == 0, result.output
    assert ActivationStore(home / "run" / "stores" / "only").manifest.description.source["text"] == "~/text.jsonl"
    np.save(home / "x.npy", np.ones((2, 3, 4), dtype=np.float32))
    result = call("import", "~/x.npy", "--mask=~/x.npy", "--out=~/store")
    assert "mask has shape (2, 3, 4)" in result.output
    assert call("import", "~/x.npy", "--out=~/store").exit_code == 0
    assert (home / "store" / "manifest.json").is_file() and not (tmp_path / "~").exists()
    assert "begins with a user who has no home folder here" in refusal("run", study, "--out=~nobody-of-that-name/x")


def test_a_run_begun_elsewhere_says_where_it_looks_for_its_text(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study.write_text(study.read_text().replace(str(tmp_path / "text.jsonl"), "text.jsonl"))
    monkeypatch.chdir(tmp_path)
    assert call("harvest", study, "--out", tmp_path / "run").exit_code == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    sentence = refusal("harvest", tmp_path / "run")
    assert sentence.startswith(
        f"there is no text at text.jsonl: no such file or folder in {tmp_path / 'elsewhere'} (where a command is given"
    )


@pytest.mark.parametrize("option", ["context-length", "sequences"])
def test_a_scan_of_too_little_is_refused_in_one_sentence(model: Path, tmp_path: Path, option: str) -> None:
    said = refusal("scan", model, f"--{option}", 1, "--out", tmp_path / "scan")
    assert said == f"{option.replace('-', '_')} is 1: input should be greater than or equal to 2"


def test_import_makes_a_store_of_arrays_with_their_companions(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    arrays = {
        "x": generator.normal(size=(6, 5, 4)).astype(np.float32),
        "mask": np.arange(5)[None, :] < np.array([5, 4, 5, 3, 5, 5])[:, None],
        "tokens": generator.integers(0, 9, size=(6, 5)),
        "documents": np.array([0, 0, 1, 1, 2, 2]),
    }
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    companions = [part for name in ("mask", "tokens", "documents") for part in (f"--{name}", tmp_path / f"{name}.npy")]
    result = call("import", tmp_path / "x.npy", "--out", tmp_path / "store", *companions)
    assert (result.exit_code, result.stdout) == (0, f"27 activations of width 4 from 6 sequences: {tmp_path / 'store'}\n")
    store = ActivationStore(tmp_path / "store")
    assert store.documents == 3
    rows = store.read(np.arange(6))
    assert rows.token.tolist() == arrays["tokens"][arrays["mask"]].tolist()


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (np.zeros((6, 4), dtype=np.float32), "activations must have shape [sequences, positions, width]"),
        (np.full((2, 3, 4), np.nan, dtype=np.float32), "the activations hold NaN or infinity at sequence 0, index 0"),
        (np.zeros((2, 3, 4), dtype=np.int64), "activations must be floating point"),
    ],
)
def test_import_refuses_what_is_no_activations(tmp_path: Path, array: np.ndarray, sentence: str) -> None:
    np.save(tmp_path / "x.npy", array)
    assert sentence in refusal("import", tmp_path / "x.npy", "--out", tmp_path / "store")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("name", "array", "sentence"),
    [
        ("tokens", np.full((4, 3), "a"), "tokens should hold integers; this array holds <U1"),
        ("tokens", np.full((4, 3), np.nan), "tokens should hold integers; this array holds float64"),
        ("documents", np.array(list("abcd")), "documents should hold integers; this array holds <U1"),
        ("documents", np.arange(3), "documents has shape (3,), the activations need (4,)"),
        ("mask", np.full((4, 3), "x"), "mask should hold true and false, or 1 and 0; this array holds <U1"),
    ],
)
def test_import_refuses_companions_that_are_none(tmp_path: Path, name: str, array: np.ndarray, sentence: str) -> None:
    np.save(tmp_path / "x.npy", np.ones((4, 3, 2), dtype=np.float32))
    np.save(tmp_path / "companion.npy", array)
    assert sentence in refusal("import", tmp_path / "x.npy", "--out", tmp_path / "store", f"--{name}", tmp_path / "companion.npy")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
def test_one_file_may_hold_everything_and_nothing_in_it_is_passed_over_in_silence(tmp_path: Path, ending: str) -> None:
    x, mask = np.random.default_rng(0).normal(size=(4, 3, 2)).astype(np.float32), np.ones((4, 3), bool)
    mask[0, 1] = False
    arrays = {"x": x, "mask": mask, "documents": np.array([0, 0, 1, 1]), "labels": np.zeros(4)}
    path, out = tmp_path / f"all.{ending}", tmp_path / "store"
    np.savez(path, **arrays) if ending == "npz" else save_file({name: torch.from_numpy(array) for name, array in arrays.items()}, path)
    result = call("import", path, "--out", out)
    read = f"all.{ending} holds 4 arrays: 'x' as activations, 'mask' as mask, 'documents' as documents; not read: 'labels'\n"
    assert (result.exit_code, result.stdout) == (0, f"{read}11 activations of width 2 from 4 sequences: {out}\n")
    assert ActivationStore(out).documents == 2


def test_an_array_of_a_file_can_be_named(tmp_path: Path) -> None:
    there = np.ones((4, 3))
    there[2, 1] = 0
    a = tmp_path / "a.npz"
    np.savez(a, acts=np.ones((4, 3, 2), np.float32), there=there, mask=np.tri(4, 3))
    assert "\n9 activations" in call("import", f"{a}:acts", "--out", tmp_path / "beside").stdout
    assert "\n11 activations" in call("import", a, "--name", "acts", "--mask", f"{a}:there", "--out", tmp_path / "named").stdout
    assert "\n9 activations" in call("import", a, "--name", "acts", "--mask", a, "--out", tmp_path / "same").stdout
    assert refusal("import", a, "--out", tmp_path / "x") == f"{a} holds 3 arrays (acts, mask, there); name the one to read"
    assert "no array 'thera'; did you mean 'there'?" in refusal("import", f"{a}:acts", "--mask", f"{a}:thera", "--out", tmp_path / "x")


def test_colons_may_be_in_the_name_of_a_file_and_of_an_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arrays = {"model:layer.1": np.ones((4, 3, 2), np.float32), "a/b:" + "c" * 300: np.ones((4, 2, 2), np.float32)}
    for name in ("a.npz", "run:1.npz", "C:\\data\\a.npz"):
        save_file({key: torch.from_numpy(array) for key, array in arrays.items()}, name.replace(".npz", ".safetensors"))
        with zipfile.ZipFile(name, "w") as archive:  # NumPy writes no name that could not be that of a file
            for key, array in arrays.items():
                with archive.open(f"{key}.npy", "w") as file:
                    np.lib.format.write_array(file, array)
        for file_name in (name, name.replace(".npz", ".safetensors")):
            for rows, key in zip((12, 8), arrays, strict=True):
                assert f"\n{rows} activations" in call("import", f"{file_name}:{key}", "--out", f"{file_name}-{rows}").stdout
            assert "has no array 'model:layer'; did you mean" in refusal("import", f"{file_name}:model:layer", "--out", "x")
            assert "has no array ''" in refusal("import", f"{file_name}:", "--out", "x")
            assert "has no array ''" in refusal("import", file_name, "--name", "", "--out", "x")
    assert refusal("import", "D:\\b.npz:x", "--out", "x").startswith("D:\\b.npz:x does not exist: it should be an array in .npy")


def test_import_names_what_is_wrong_with_a_file(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((4, 3, 2), dtype=np.float32))
    (tmp_path / "x.npz").write_bytes(b"PK and nothing more")
    out = ("--out", tmp_path / "store")
    assert "x.npz is not readable as .npz: it is truncated, or of another format" in refusal("import", tmp_path / "x.npz", *out)
    assert "is a folder: it should be an array" in refusal("import", tmp_path, *out)
    assert "holds one array without a name: leave out the name 'y'" in refusal("import", tmp_path / "x.npy", "--name", "y", *out)


# Vectors, and several runs on one page


@pytest.fixture(scope="module")
def drawn(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A run up to its figures, with vectors beside them."""
    folder = tmp_path_factory.mktemp("drawn")
    (folder / "text.jsonl").write_text(TEXT)
    (folder / "study.yaml").write_text(STUDY.format(model=model, text=folder / "text.jsonl"))
    return folder / "run", call("figures", folder / "study.yaml", "--out", folder / "run", "--format", "svg")


def test_figures_are_written_as_vectors_beside_the_png(drawn: tuple[Path, Result]) -> None:
    run, result = drawn
    assert (result.exit_code, result.stdout) == (0, f"{run / 'figures'}\n")
    vectors = {path.stem: path.read_text("utf-8") for path in (run / "figures").glob("*.svg")}
    assert set(vectors) == {path.stem for path in (run / "figures").glob("*.png")} >= {"frontier", "comparative_analysis", "masks"}
    assert all("<svg" in text and "<path" in text for text in vectors.values())
    assert "<image" not in vectors["frontier"]


def test_a_format_that_is_none_is_refused_before_anything_is_done(study: Path, tmp_path: Path) -> None:
    sentence = refusal("figures", study, "--out", tmp_path / "out", "--format", "gif")
    assert sentence == "figures are not written as 'gif'; it is one of: pdf, png, svg"
    assert not (tmp_path / "out").exists()


def test_several_runs_stand_on_one_page(drawn: tuple[Path, Result], tmp_path: Path) -> None:
    run, other, out = drawn[0], tmp_path / "other", tmp_path / "page"
    shutil.copytree(run, other, ignore=shutil.ignore_patterns("figures", "stores"))
    results = read_json(other / "results.json", "the results of a study")
    results["study"]["training"]["steps"] = 11
    write_json(other / "results.json", results)
    result = call("report", run, other, "--out", out)
    assert (result.exit_code, result.stdout) == (0, f"{out / 'report.html'}\n")
    page = (out / "report.html").read_text("utf-8")
    for words in (f"cli ({run})", f"cli ({other})", "training.steps", ">11<"):
        assert words in page
    assert page.count("<img ") == 1  # the other has no picture to show
    assert not (run / "report.html").exists()


def test_runs_that_cannot_stand_side_by_side_are_refused_in_one_sentence(drawn: tuple[Path, Result], study: Path, tmp_path: Path) -> None:
    run, unfinished, out = drawn[0], tmp_path / "unfinished", tmp_path / "page"
    assert call("harvest", study, "--out", unfinished).exit_code == 0
    assert f"{unfinished / 'results.json'} does not exist" in refusal("report", run, unfinished, "--out", out)
    assert refusal("report", run, run, "--out", out) == "a run stands here twice; name each run once"
    assert "leave out --model" in refusal("report", run, unfinished, "--model", "smollm2-135m", "--out", out)
    assert f"{unfinished} holds a run" in refusal("report", run, study, "--out", unfinished)
    assert not out.exists()


# Models of every family, and the lab notes' study


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_study_runs_on_a_model_of_every_family(family: str, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_headline_alone(monkeypatch)
    folder, out = tiny_model(family, tmp_path / family), tmp_path / "out"
    text = study.read_text().replace("arms:", f"scans: [{{model: any, text: {tmp_path / 'text.jsonl'}, context_length: 16}}]\narms:")
    study.write_text(text)
    result = call("run", study, "--model", folder, "--out", out)
    assert result.exit_code == 0, result.output
    results = json.loads((out / "results.json").read_text())
    assert results["activations"]["only"]["width"] == WIDTH
    assert [len(scan["layers"]) for scan in results["scans"].values()] == [LAYERS + 1]
    assert results["runs"][0]["fve"] < 1
    assert (out / "report.html").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_gemma_study_runs_on_a_tiny_random_gemma_2(tmp_path: Path) -> None:
    """All of it, but for the number of training steps: 2,000 of three dictionaries are minutes that prove nothing more."""
    folder, out, study = tmp_path / "tiny-gemma-2", tmp_path / "out", tmp_path / "gemma-2-2b.yaml"
    tiny_gemma_2(folder)
    text = (STUDIES / "gemma-2-2b.yaml").read_text()
    assert text.count("\n  steps: 2000\n") == 1
    study.write_text(text.replace("\n  steps: 2000\n", "\n  steps: 40\n"))
    result = call("run", study, "--model", folder, "--out", out)
    assert result.exit_code == 0, result.output
    results = json.loads((out / "results.json").read_text())
    assert results["activations"]["layer-19"]["layer"] == 19
    assert [run["kind"] for run in results["runs"]] == ["standard", "batchtopk", "positional"]
    assert {run["features"] for run in results["runs"]} == {2304}
    assert read_copy(out / "study.yaml").text.startswith(f"# Written by --model {folder}, which replaced the model")
    assert (out / "report.html").exists()


def tiny_gemma_2(folder: Path) -> None:
    """A random Gemma 2 that is as deep as the study needs and as narrow as it can be."""
    tokenizer = tiny_tokenizer("gemma2")
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=20,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=128,
        sliding_window=64,
        query_pre_attn_scalar=8,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
