"""Kill a study at random moments, again and again, and look whether anything is lost.

    make chaos KILLS=200        (python -m tools.chaos --kills 200 [--seed 0] [--folder FOLDER])
    make chaos KILLS=100 ARGS="--processes 2"

A small study with every stage (scan, harvest of a language model, of a stream and of a world, training of three kinds of arms and of one
that takes off what tokens and past say, evaluation with five of its sections, figures, report) runs once without interruption. Then it
runs in fresh folders in processes that get SIGKILL: every other one after a random time, the rest at a random file operation: at the
making of a temporary file, before or after it is flushed, before or after it is renamed. The next process goes on in the same folder, and
may be killed too, until one comes to the end. Last line:

    N kills, N recovered, 0 lost, 0 different

recovered: the process after the kill went on without complaint; lost: it was refused, failed, or repeated a stage that was recorded as
finished before the kill; different: a study that came to its end holds other bytes, in any file but those that hold times, than the one
that was never interrupted. Processes are forked from one that has the libraries loaded, so that kills fall into the work and not into
imports.

With `--processes`, the engine of `torchrun` starts so many, which harvest a world and a stream and train on them in windows of a few
batches, up to the results; a random one of them gets SIGKILL or SIGTERM, or process 0, which alone writes, SIGKILL at a file operation.
Lost is then also what has not ended 60 seconds after its process was killed.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tests.companies import children
from tests.tiny_models import tiny_model
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from temporallens import cli
from temporallens.activations.language.models import LanguageModel
from temporallens.errors import TemporalLensError
from temporallens.files import read_json
from temporallens.study.reading import read_study
from temporallens.study.run import run_study
from temporallens.training import trainer

STUDY = """\
name: chaos
threads: 1
{scans}
activations:
  world:
    {{source: world, width: 16, features: 24, positions: 16, sequences: {sequences}, start: 3, periods: [4], active: 2, highest_rate: 0.2,
      variant: token}}
{harvests}
arms:
  positional: {{kind: positional, features: 48, groups: 3}}
{arms}
levels: {{k: [4]}}
seeds: [0]
training: {{steps: {steps}, batch_size: 64, learning_rate: 0.005, log_every: 5, checkpoint_every: 10, held_out: 0.25, dead_after: 1000}}
{evaluation}"""
EVALUATION = """\
evaluation:
  positions: {least_firings: 5, least_tokens: 2, resamples: 20}
  clusters: {least_firings: 20, least_features: 2, sample: 32, draws: 19, bootstraps: 2}
  features: {bins: 6, contexts: 2, draws: 40}
  splicing: {rows: 2, resamples: 20}
  fidelity: {rows: 4, shifts: [1, 2], least_firings: 2, resamples: 20}
"""
MORE_ARMS = """\
  budgeted: {kind: budgeted, features: 48, position_weights: true}
  standard: {kind: standard, features: 48, sparsity: 1.0}
  known: {kind: batchtopk, features: 48, expectation: {token: pair, embedding: false, past: [previous, same_token]}}
"""
TIMED = {"timing.json", "report.html", ".lock", "progress.safetensors"}
"""Files that hold times, and what a kill right behind a manifest leaves beside it."""
REFUSED, FAILED, KILLED, LATE = 3, 4, 5, 6
PATIENCE = 60.0
"""Seconds in which all processes should have ended when one was killed."""


WINDOW = 160
"""Rows of a stream's window where several processes share it: so few that a training has many."""


class Outcome(NamedTuple):
    """How a series of killed studies ended."""

    kills: int
    lost: list[str]
    different: list[str]
    stages: Counter[str]  # in which kind of stage the kills fell

    @property
    def line(self) -> str:
        recovered = self.kills - len(self.lost)
        return f"{self.kills} kills, {recovered} recovered, {len(self.lost)} lost, {len(self.different)} different"


class Dying(NamedTuple):
    """How a process is to be killed: after a time, or at one of its file operations, counted from its start."""

    delay: float | None = None
    operation: int | None = None
    after: bool = False
    rank: int = 0
    signal: int = signal.SIGKILL


def kill_at(operation: int, after: bool) -> None:
    """Let this process be killed at that file operation, counted from now, before it or after it."""
    left = [operation]

    def counting(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            left[0] -= 1
            if left[0] == 0 and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(*arguments, **named)
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    tempfile.mkstemp = counting(tempfile.mkstemp)
    os.fsync = counting(os.fsync)
    os.replace = counting(os.replace)  # what Path.replace calls


def run_once(study: Path, folder: Path, dying: Dying | None = None, prepare: Callable[[], None] = lambda: None, processes: int = 1) -> int:
    """Run the study in a forked process, or so many, of which one is killed as `dying` says; the exit code, -SIGKILL where it was."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return _wait(child, dying, processes)
    code = FAILED

    def prepared() -> None:
        torch.set_num_threads(1)
        prepare()
        if dying is not None and dying.operation is not None:
            kill_at(dying.operation, dying.after)

    try:
        if processes > 1:
            _redirect(folder.with_suffix(".said"))
        code = _alone(study, folder, prepared) if processes == 1 else _together(study, folder, prepared, processes)
    finally:  # a child that fails must not go on as a second parent
        if code == FAILED:
            traceback.print_exc()
        os._exit(code)


def _alone(study: Path, folder: Path, prepare: Callable[[], None]) -> int:
    prepare()
    try:
        run_study(read_study(study), folder)
    except TemporalLensError as error:
        print(f"refused: {error}", file=sys.stderr, flush=True)
        return REFUSED
    return 0


def _redirect(path: Path) -> None:
    """Let a file have what this process and its children say: `torchrun` reports every kill at length."""
    with path.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _together(study: Path, folder: Path, prepare: Callable[[], None], processes: int) -> int:
    """The command, by `torchrun`'s engine, which forks its processes from this one."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id="chaos",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        start_method="fork",
        monitor_interval=0.1,
    )

    def work() -> None:
        if os.environ["RANK"] == "0":
            prepare()
        torch.set_num_threads(1)
        cli.app(["evaluate", str(study), "--out", str(folder)])

    try:
        elastic_launch(config, work)()
    except ChildFailedError as error:
        return KILLED if error.get_first_failure()[1].exitcode == -signal.SIGKILL else REFUSED
    return 0


def _wait(child: int, dying: Dying | None, processes: int) -> int:
    """The exit code of a child that is, or has, a process that is killed once its time has come."""
    deadline = None if dying is None or dying.delay is None else time.monotonic() + dying.delay
    killed = None  # when
    while True:
        done, status = os.waitpid(child, 0 if deadline is None else os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            if killed is not None and code > 0:
                return -signal.SIGKILL if time.monotonic() - killed < PATIENCE else LATE
            return -signal.SIGKILL if code == KILLED else code
        if deadline is not None and time.monotonic() > deadline:
            assert dying is not None
            targets = [child] if processes == 1 else children(child)
            if len(targets) == processes:  # all have begun, in order of their ranks
                os.kill(targets[dying.rank], dying.signal)
                killed, deadline = None if processes == 1 else time.monotonic(), None
        time.sleep(0.001)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file that does not hold times."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in TIMED)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def stages(folder: Path) -> dict[str, bool]:
    """Stages that were begun, by name, and whether they are recorded as finished."""
    records = (read_json(path, "the record of a stage") for path in sorted(folder.glob("stages/**/*.json")))
    return {record["stage"]: record["finished"] for record in records}


def proofs(folder: Path) -> dict[str, int]:
    """When each finished stage was recorded: a stage that is done again has another time."""
    paths = sorted(folder.glob("stages/**/*.json"))
    return {str(path): path.stat().st_mtime_ns for path in paths if read_json(path, "the record of a stage")["finished"]}


def count_operations(study: Path, folder: Path, processes: int) -> tuple[float, int]:
    """Seconds and file operations of an uninterrupted run in `folder`."""
    counter = folder.with_suffix(".count")

    def counting() -> None:
        done = [0]

        def counted(original: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **named: Any) -> Any:
                done[0] += 1
                counter.write_text(str(done[0]))
                return original(*arguments, **named)

            return call

        tempfile.mkstemp, os.fsync, os.replace = counted(tempfile.mkstemp), counted(os.fsync), counted(os.replace)

    started = time.monotonic()
    if run_once(study, folder, prepare=counting, processes=processes) != 0:
        raise SystemExit("the study does not run even without being killed")
    return time.monotonic() - started, int(counter.read_text())


def chaos(study: Path, folder: Path, kills: int, seed: int, processes: int = 1, say: Callable[[str], None] = print) -> Outcome:
    """Kill the study `kills` times in folders under `folder`."""
    dice = random.Random(seed)
    seconds, operations = count_operations(study, folder / "whole", processes)
    whole = contents(folder / "whole")
    say(f"uninterrupted: {seconds:.1f} s, {operations} file operations, {len(whole)} files to compare")
    outcome = Outcome(0, [], [], Counter())
    number, pending = 0, False  # pending: the last process in this folder was killed
    while outcome.kills < kills or pending:
        run = folder / f"run-{number}"
        before = proofs(run)
        code = run_once(study, run, None if outcome.kills >= kills else _dying(dice, seconds, operations, processes), processes=processes)
        repeated = [path for path, when in before.items() if proofs(run).get(path) != when]
        label = f"run {number}, kill {outcome.kills}"
        if code == LATE or (pending and (code > 0 or repeated)):
            outcome.lost.append(f"{label}: exit {code}, repeated {repeated[:3]}")
        if code > 0:
            said = run.with_suffix(".said")
            say(f"{label}: exit {code}" + (f"\n{said.read_text()[-4000:]}" if said.exists() else ""))
            number, pending = number + 1, False
            continue
        if code == -signal.SIGKILL:
            outcome.stages[_current(run)] += 1
            outcome, pending = outcome._replace(kills=outcome.kills + 1), True
            if outcome.kills % 20 == 0:
                say(f"{outcome.line}; killed in: {dict(outcome.stages)}")
            continue
        found = contents(run)
        names = sorted(name for name in found.keys() | whole.keys() if found.get(name) != whole.get(name))
        if names:
            outcome.different.append(f"run {number}: {', '.join(names[:5])}")
            say(outcome.different[-1])
        number, pending = number + 1, False
    return outcome


def _dying(dice: random.Random, seconds: float, operations: int, processes: int) -> Dying:
    if dice.random() < 0.5:
        delay = dice.uniform(0.01, seconds)
        if processes == 1:
            return Dying(delay)
        return Dying(delay, rank=dice.randrange(processes), signal=dice.choice([signal.SIGKILL, signal.SIGTERM]))
    return Dying(operation=dice.randrange(1, max(2, operations // 3)), after=dice.random() < 0.5)


def _current(folder: Path) -> str:
    """The kind of stage in which the last process was killed."""
    open_stages = [name for name, finished in stages(folder).items() if not finished]
    return open_stages[0].partition("/")[0] if open_stages else "between stages"


def write_streamed_study(folder: Path, model: Path, text: Path) -> Path:
    """A study of a world and a stream, for several processes."""
    path = folder / "study.yaml"
    stream = f"  stream: {{model: {model}, text: {text}, context_length: 16, batch_size: 4, layer: 0, stream: true, stored_every: 2}}"
    path.write_text(STUDY.format(sequences=48, steps=60, scans="", harvests=stream, arms="", evaluation=""))
    trainer.window_rows = lambda *_: WINDOW
    return path


def write_study(folder: Path, sequences: int = 96, steps: int = 60, model: Path | None = None, text: Path | None = None) -> Path:
    """The study; with a model directory and a text it scans and harvests that too, trains more arms and measures more."""
    scans = harvests = arms = evaluation = ""
    if model is not None:
        scans = f"scans: [{{model: {model}, text: {text}, context_length: 16, sequences: 8}}]"
        read = f"model: {model}, text: {text}, context_length: 16, batch_size: 4, dtype: float32"
        harvests = f"  model: {{{read}, layer: 1}}\n  stream: {{{read}, layer: 0, stream: true, stored_every: 2}}"
        arms, evaluation = MORE_ARMS, EVALUATION
    path = folder / "study.yaml"
    content = {"scans": scans, "harvests": harvests, "arms": arms, "evaluation": evaluation}
    path.write_text(STUDY.format(sequences=sequences, steps=steps, **content))
    return path


def tiny_text(folder: Path) -> Path:
    words = ["state", "union", "people", "prices", "moon", "rain", "river", "bridge", "law", "peace", "trade", "road", "school"]
    path = folder / "text.jsonl"
    lines = (" ".join(words[(n * 7 + p * (n % 5 + 1)) % len(words)] for p in range(40)) for n in range(24))
    path.write_text("".join(json.dumps({"text": f"{line}. Document {n} ends."}) + "\n" for n, line in enumerate(lines)))
    return path


def main() -> None:
    """Kill studies as the options say, and print whether anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the runs are written; they are removed at the end")
    parser.add_argument("--small", action="store_true", help="a world and one arm only: no language model, fewer pictures")
    parser.add_argument("--processes", type=int, default=1, help="that torchrun starts for each run, one of which is killed")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=chosen.folder) as name:
        folder = Path(name)
        if chosen.processes > 1:
            study = write_streamed_study(folder, tiny_model("llama", folder / "llama"), tiny_text(folder))
        elif chosen.small:
            study = write_study(folder)
        else:
            study = write_study(folder, model=tiny_model("llama", folder / "llama"), text=tiny_text(folder))
        if not chosen.small:
            LanguageModel.load(str(folder / "llama"))  # once here, so that the libraries are loaded in every process
        outcome = chaos(study, folder, chosen.kills, chosen.seed, chosen.processes)
    for what in [*outcome.lost, *outcome.different]:
        print(what)
    print(f"killed in: {', '.join(f'{kind} {count}' for kind, count in outcome.stages.most_common())}")
    print(outcome.line)
    sys.exit(1 if outcome.lost or outcome.different else 0)


if __name__ == "__main__":
    main()
