"""A long training, and whether the process grows with it; a whole study under a limit of memory.

    python -m tools.endurance [--steps 10000]                       # resident memory and open files, every tenth of the steps
    python -m tools.endurance --study STUDY --gigabytes 3           # the study's command in a process that may hold no more

The training is the real one (store, loader, arms, history, checkpoints) on a small world. The limit is the kernel's on private writable
memory (RLIMIT_DATA); the peak that is printed is all that was resident. Linux only.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from benchmarks.memory import status_bytes

from temporallens.activations.made.worlds import WorldPolicy, harvest_world
from temporallens.dictionaries.arms.batchtopk import BatchTopK
from temporallens.dictionaries.arms.positional import Positional
from temporallens.training.policy import TrainingPolicy
from temporallens.training.trainee import ArmRun, Trainee
from temporallens.training.trainer import train_arms

WORLD = WorldPolicy(width=16, features=24, positions=16, sequences=1024, start=3, periods=(4,), active=2, highest_rate=0.2)
ARMS = [ArmRun("batchtopk", BatchTopK(features=64, k=4), 0), ArmRun("positional", Positional(features=64, k=4), 0)]


def train(steps: int, folder: Path) -> list[tuple[int, int, int]]:
    """Step, resident bytes and open files, ten times in a training of so many steps."""
    store, seen = harvest_world(WORLD, folder / "store"), []
    original = Trainee.log

    def log(self: Trainee, step: int, *rest: Any) -> None:
        original(self, step, *rest)
        if self.run.name == ARMS[0].name and (step + 1) % (steps // 10) == 0:
            seen.append((step + 1, status_bytes("VmRSS"), len(list(Path("/proc/self/fd").iterdir()))))
            print(f"step {step + 1:>7,}: {seen[-1][1] / 1e6:7.1f} MB resident, {seen[-1][2]} open files", flush=True)

    with patch.object(Trainee, "log", log):
        policy = TrainingPolicy(steps=steps, batch_size=256, log_every=max(1, steps // 100), checkpoint_every=max(1, steps // 20))
        train_arms(store, ARMS, policy, folder / "arms")
    return seen


def limited(study: str, gigabytes: float, out: Path) -> int:
    """Run a study in a process that may hold so much; its exit code."""
    limit = int(gigabytes * 1e9)
    command = [sys.executable, "-m", "temporallens", "run", study, "--out", str(out)]
    finished = subprocess.run(command, check=False, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(f"{study} under {gigabytes:g} GB of private memory: exit {finished.returncode}, at most {peak / 1e9:.2f} GB resident")
    return finished.returncode


def main() -> None:
    """Train for long, or run a study under a limit of memory, and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--study", help="run this study instead, under a limit")
    parser.add_argument("--gigabytes", type=float, default=3.0)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if chosen.study:
            sys.exit(limited(chosen.study, chosen.gigabytes, Path(folder) / "run"))
        seen = train(chosen.steps, Path(folder))
    half, last = seen[len(seen) // 2 - 1], seen[-1]  # by then everything has begun: features are first dead after a million tokens
    growth = (last[1] - half[1]) / (last[0] - half[0])
    print(f"from step {half[0]:,} to {last[0]:,}: {growth:+.0f} bytes a step, {last[2] - half[2]:+d} open files")


if __name__ == "__main__":
    main()
