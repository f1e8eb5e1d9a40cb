"""What `temporallens inspect` costs once its activations are harvested: time and memory, of a dictionary as large as published ones are.

    python -m benchmarks.inspection [--out runs/inspection] [--features 16384] [--k 32] [--tokens 100000] [--threads 2]

A file of named tensors whose rows are activations of layer 12 of SmolLM2-135M themselves, without their mean: what is measured costs the
same for a trained one of its size and L0. The study of an inspection is written and harvested first; the rest of it, up to the report, runs
in a process of its own, whose seconds and largest resident size the system counts. The last line has them. What is there of an earlier run
is removed.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file

import temporallens as tl
from temporallens.files import make_folder, write_text
from temporallens.interop.loading import save_as_ours
from temporallens.layout import RunFolder
from temporallens.study.inspection import inspection
from temporallens.study.reading import read_study
from temporallens.study.run import run_study

MODEL, LAYER = "smollm2-135m", 12
WATCH = """\
import json, os, sys
_, status, used = os.wait4(os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ), 0)
print(json.dumps([status, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e9]))
"""
"""Runs a command, and prints what the system counted of it. A process's largest size includes that of the one that started it, which
therefore is this small one."""


class Cost(NamedTuple):
    """Of a process."""

    seconds: float  # on the clock
    processor: float  # seconds of all its threads
    memory: float  # GB at its peak


def main(arguments: Sequence[str] | None = None) -> Cost:
    """Write the dictionary, harvest, inspect, and print what that cost. Ends this process with an error where the inspection fails."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inspection", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, default=Path("runs/inspection"), help="%(default)s unless said otherwise")
    for name, value in (("features", 16384), ("k", 32), ("tokens", 100_000), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=value, help="%(default)s")
    options = parser.parse_args(arguments)
    out = options.out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    make_folder(out)
    write_dictionary(out / "dictionary.safetensors", options.features, out / "rows")
    study = _study(out, options)
    run_study(read_study(study), out / "inspected", up_to="harvest", say=print)
    cost = costs([sys.executable, "-m", "temporallens", "run", str(study), "--out", str(out / "inspected")], options.threads)
    print(RunFolder(out / "inspected").report)
    print(
        f"{options.features:,} features, {options.tokens:,} tokens, {options.threads} threads: {cost.seconds:.0f} s on the clock, "
        f"{cost.processor:.0f} s of the processor, {cost.memory:.2f} GB at the peak"
    )
    return cost


def write_dictionary(path: Path, features: int, folder: Path) -> None:
    """As many features as there are different activations to be had: rows of unit norm, in the order of a seed."""
    store = tl.harvest(MODEL, LAYER, out=folder, max_tokens=2 * features, dtype="float32")
    rows = store.read(np.arange(store.sequences))
    x = rows.x[rows.excluded == 0]
    mean = x.mean(0)
    chosen = (x - mean)[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:features]]
    chosen /= torch.linalg.vector_norm(chosen, dim=1, keepdim=True)
    save_file({"encoder": chosen, "decoder": chosen.clone(), "bias": mean}, path)


def _study(out: Path, options: argparse.Namespace) -> Path:
    """That of `temporallens inspect`, with what it is told of the tensors."""
    named = tl.load_dictionary(
        out / "dictionary.safetensors", encoder="encoder", decoder="decoder", decoder_bias="bias", subtracts_bias=True, k=options.k
    )
    save_as_ours(named, out / "dictionary")
    write_text(out / "study.yaml", inspection([str(out / "dictionary")], MODEL, LAYER, tokens=options.tokens).text)
    return out / "study.yaml"


def costs(command: Sequence[str], threads: int) -> Cost:
    """What a command costs; what it says is printed."""
    began = time.monotonic()
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    watched = subprocess.run(
        [sys.executable, "-c", WATCH, *command],
        env=os.environ | dict.fromkeys(names, str(threads)),
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    said, _, last = watched.stdout.rstrip().rpartition("\n")
    print(said)
    status, processor, memory = json.loads(last)
    if status:
        sys.exit("error: the inspection failed; what it said stands above")
    return Cost(time.monotonic() - began, processor, memory)


if __name__ == "__main__":
    main()
