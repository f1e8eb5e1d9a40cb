"""Two processes of one thread each against one process of one thread: seconds per training step on the same global batches.

Every turn is a `torchrun` of its own, in which the processes warm up before anything is timed. On a machine with two quiet cores.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks.timing import Section, Settings, Times

ROOT = Path(__file__).parents[1]
KEY = "scale.training_two_processes"
STEPS = 8
ONE, TWO = "one process of one thread", "two processes of one thread"


def seconds(settings: Settings, count: int) -> float:
    """Per training step, by so many processes."""
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "-m", "benchmarks.scale_worker"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    found = subprocess.run(
        [sys.executable, *command, json.dumps(asdict(settings.sizes)), str(STEPS)],
        cwd=ROOT,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return float(json.loads(found.stdout.splitlines()[-1])["seconds"])


def measure(settings: Settings) -> Section:
    times = Times({ONE: [], TWO: []})
    for number in range(settings.rounds):
        for name in (ONE, TWO) if number % 2 == 0 else (TWO, ONE):
            times.seconds[name].append(seconds(settings, 2 if name == TWO else 1))
    return Section("scale", {KEY: times.speed_ratio(TWO, ONE)}, times.seconds, dict.fromkeys(times.seconds, settings.sizes.batch))
