"""Past one process: two processes of one thread each against one in training, of one dictionary that they share (in batches of two
sizes) and of a dictionary each, and in harvest, and a stream against its parts.

Every turn is a `torchrun` of its own, in which the processes warm up before anything is timed. On a machine with two quiet cores: a stream
reads in one thread and learns in another, and is compared with the slower of the two alone, on the same batches.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.scale_worker import LARGER
from benchmarks.timing import Section, Settings, Times

ROOT = Path(__file__).parents[1]
SHARED, OWN = "scale.training_shared_by_two_processes", "scale.training_dealt_to_two_processes"
LARGE = "scale.training_shared_in_large_batches"
HARVEST, STREAM = "scale.harvest_two_processes", "scale.stream_vs_slower"
ONE, TWO = "training, one process of one thread", "training, two processes of one thread that share a dictionary"
ONE_LARGE, TWO_LARGE = (f"{name}, in batches {LARGER} times as large" for name in (ONE, TWO))
EACH = "training, two processes of one thread with a dictionary each"
HARVEST_ONE, HARVEST_TWO = "harvest, one process of one thread", "harvest, two processes of one thread"
READING, LEARNING, STREAMED = "a stream's windows, read alone", "training on the stream's batches alone", "training from the stream"
GLOO = "from one process to another by gloo"
MOMENTS = "Adam's moments in one process, and in each of two"


def found(settings: Settings, work: str, count: int) -> dict[str, float]:
    """What so many processes measure of a work."""
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "-m", "benchmarks.scale_worker"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command, work, json.dumps(asdict(settings))],
        cwd=ROOT,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{work} by {count} processes failed:\n{done.stderr}")
    values: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return values


def measure(settings: Settings) -> Section:
    seconds: dict[str, list[float]] = {}
    tokens: dict[str, int] = {}
    gloo: list[float] = []
    moments: dict[int, float] = {}

    def turn(names: Sequence[str], work: str, count: int) -> None:
        values = found(settings, work, count)
        for name, key in zip(names, ("seconds", "reading", "learning"), strict=False):
            seconds.setdefault(name, []).append(values[key])
            tokens[name] = int(values["tokens"])
        gloo.extend([values["gloo"]] if "gloo" in values else [])
        moments.update({count: values["moments"]} if "moments" in values else {})

    turns = [
        ([ONE], "train", 1),
        ([TWO], "train", 2),
        ([ONE_LARGE], "train_large", 1),
        ([TWO_LARGE], "train_large", 2),
        ([EACH], "train_own", 2),
        ([HARVEST_ONE], "harvest", 1),
        ([HARVEST_TWO], "harvest", 2),
    ]
    turns.append(([STREAMED, READING, LEARNING], "stream", 1))
    for number in range(settings.rounds):
        for names, work, count in turns if number % 2 == 0 else turns[::-1]:
            turn(names, work, count)
    times = Times(seconds)
    alone = zip(seconds[READING], seconds[LEARNING], seconds[STREAMED], strict=True)
    each = times.speed_ratio(EACH, ONE)
    ratios = {
        SHARED: times.speed_ratio(TWO, ONE),
        LARGE: times.speed_ratio(TWO_LARGE, ONE_LARGE),
        OWN: each and 2 * each,
        HARVEST: times.speed_ratio(HARVEST_TWO, HARVEST_ONE),
        STREAM: statistics.median(max(reading, learning) / streamed for reading, learning, streamed in alone),
    }
    kept = " and ".join(f"{moments[count] / 1e6:.1f} MB" for count in (1, 2))
    return Section("scale", ratios, seconds, tokens, notes={GLOO: f"{statistics.median(gloo) / 1e9:.2f} GB/s", MOMENTS: kept})
