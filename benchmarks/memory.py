"""Peak memory of a training step, in units of one dense `[N, F]` float32 code matrix.

    python -m benchmarks.memory '{"width": 576, ...}' cpu bfloat16     # prints bytes, what one step adds at its peak

Measured in a process of its own, from what is resident before (weights, optimizer state, the batch) to the peak of several steps. On
Linux the kernel's own high-water mark is set back and read; elsewhere the process is sampled. On a GPU the allocator counts.
"""

import gc
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

import torch

from benchmarks.timing import Section, Settings, Sizes, batches, synchronise
from benchmarks.training_step import OURS, WARM_UP, OurStep, positions_of, precisions
from temporallens.dictionaries.arms.batchtopk import BatchTopK
from temporallens.precision import Precision, precision

STEPS = 5
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def status_bytes(name: str) -> int:
    """A figure of the kernel's about this process: `VmRSS`, `VmHWM`."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def peak_by_kernel(work: Callable[[], None]) -> int:
    RESET.write_text("5")
    before = status_bytes("VmRSS")
    work()
    return status_bytes("VmHWM") - before


def peak_by_sampling(work: Callable[[], None]) -> int:
    import psutil

    process, done = psutil.Process(), threading.Event()
    before = peak = process.memory_info().rss

    def sample() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, process.memory_info().rss)
            time.sleep(0.0005)

    sampler = threading.Thread(target=sample)
    sampler.start()
    work()
    done.set()
    sampler.join()
    return peak - before


def peak_on_gpu(work: Callable[[], None]) -> int:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return torch.cuda.max_memory_allocated() - before


def added_by_a_step(sizes: Sizes, device: torch.device, used: Precision) -> int:
    """Bytes that training steps need beyond what is there between them."""
    data = batches(sizes, device, 1)
    step = OurStep(BatchTopK(features=sizes.features, k=sizes.k), sizes, used, data, device)
    # Steps on few rows create the optimizer's state and settle the threshold without leaving large buffers to be used again.
    few = replace(sizes, batch=max(1, sizes.batch // 64))
    for _ in range(WARM_UP):
        step.learn(data[0][: few.batch], positions_of(few, device))
    gc.collect()

    def work() -> None:
        step.warmed(STEPS)
        synchronise(device)

    if device.type == "cuda":
        return peak_on_gpu(work)
    return peak_by_kernel(work) if RESET.exists() else peak_by_sampling(work)


def measure(settings: Settings) -> Section:
    sizes, running = settings.sizes, {}
    for name, used in precisions(settings.torch_device).items():  # side by side: nothing is timed
        key = "peak_memory_ratio" if name == OURS else "peak_memory_ratio.float32"
        command = [sys.executable, "-m", "benchmarks.memory", json.dumps(asdict(sizes)), settings.device, used]
        running[key] = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
    printed = {key: process.communicate()[0] for key, process in running.items()}
    return Section("memory", {key: int(text) / sizes.matrix_bytes if text else None for key, text in printed.items()})


if __name__ == "__main__":
    sizes, device, requested = sys.argv[1:]
    print(added_by_a_step(Sizes(**json.loads(sizes)), torch.device(device), precision(cast(Precision, requested), device)))
