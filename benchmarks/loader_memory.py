"""Resident memory of a training that reads a large store, beyond what the program and the dictionary take.

    python -m benchmarks.loader_memory [--gigabytes 4] [--steps 400] [--folder FOLDER]

Writes a store of random bfloat16 rows in a process of its own (in FOLDER, by default a temporary one), then trains a small dictionary
on it in this one, which goes through the whole path: checksums, the moments of the training documents, shuffled windows read ahead,
thresholds. Memory is the kernel's high-water mark of this process over what was resident before the store was opened; pages of
mapped shards count. Linux only.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.memory import RESET, status_bytes
from temporallens.activations.manifest import StoreDescription
from temporallens.activations.moments import FIRST
from temporallens.activations.store import ActivationStore
from temporallens.activations.writer import Rows, StoreWriter
from temporallens.dictionaries.arms.batchtopk import BatchTopK
from temporallens.training.policy import TrainingPolicy
from temporallens.training.trainee import ArmRun
from temporallens.training.trainer import train_arms

LENGTH, WIDTH, APPENDED = 128, 576, 64


def write_store(folder: Path, size: int) -> None:
    """A store of about `size` bytes of activations; every fourth sequence opens a document."""
    description = StoreDescription(source={"kind": "random"}, policies={"clock": "index"}, width=WIDTH, dtype="bfloat16", positions=LENGTH)
    writer, generator = StoreWriter(folder, description), torch.Generator().manual_seed(0)
    index = torch.arange(LENGTH).repeat(APPENDED)
    for number in range(max(1, round(size / (APPENDED * LENGTH * WIDTH * 2)))):
        sequence = number * APPENDED + torch.arange(APPENDED).repeat_interleave(LENGTH)
        x = torch.randn(len(index), WIDTH, generator=generator).bfloat16()
        writer.append(
            Rows(x, index, index, index, sequence, sequence // 4, torch.full_like(index, -1), FIRST * (index == 0).to(torch.uint8))
        )
    writer.finish()


def train(store_folder: Path, out: Path, steps: int) -> tuple[int, float]:
    """Peak bytes above the start, and seconds, of a training on the store."""
    arms = [ArmRun("small", BatchTopK(features=64, k=8), 0)]
    torch.mm(torch.ones(64, 64), torch.ones(64, 64))  # the libraries' own buffers are there before the measurement
    RESET.write_text("5")
    before, started = status_bytes("VmRSS"), time.perf_counter()
    train_arms(ActivationStore(store_folder), arms, TrainingPolicy(steps=steps, batch_size=1024), out)
    return status_bytes("VmHWM") - before, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--steps", type=int, default=400, help="batches of 1,024 rows; one window of the loader holds about 113")
    parser.add_argument("--folder", type=Path, help="where the store is written; it is removed at the end")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    size = int(arguments.gigabytes * 1e9)
    if arguments.write:
        write_store(arguments.write, size)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        store = Path(folder) / "store"
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", __spec__.name, "--gigabytes", str(arguments.gigabytes), "--write", store], check=True)
        held = sum(path.stat().st_size for path in store.glob("shard-*"))
        print(
            f"store of {held / 1e9:.2f} GB in {len(list(store.glob('shard-*')))} shards, written in {time.perf_counter() - started:.0f} s"
        )
        peak, seconds = train(store, Path(folder) / "arms", arguments.steps)
        print(f"{arguments.steps} steps of 1,024 rows in {seconds:.0f} s")
        print(f"peak resident memory above the start: {peak / 1e9:.3f} GB")


if __name__ == "__main__":
    main()
