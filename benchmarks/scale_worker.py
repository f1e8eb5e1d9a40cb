"""One of the processes that `benchmarks.scale` starts with `torchrun`: it trains, harvests or streams, and process 0 prints how long."""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import replace
from itertools import chain, count, islice
from pathlib import Path

import numpy as np
import torch

from benchmarks.harvest import harvest_seconds
from benchmarks.timing import Settings, Sizes, batches
from benchmarks.training_step import OurStep
from temporallens import processes
from temporallens.activations.language.harvest import HarvestPolicy, harvest_policy
from temporallens.activations.language.streams import StreamedWindows
from temporallens.activations.loader import Batch, Loader
from temporallens.activations.store import ActivationStore
from temporallens.dictionaries.arms.batchtopk import BatchTopK
from temporallens.precision import precision

STEPS, BROADCASTS, BROADCAST_BYTES = 8, 8, 1 << 23
WINDOWS, SEED = 6, 0
LARGER = 4
"""What two processes exchange in a step does not grow with its batch: so many times as many tokens show the rest."""
ROWS = 4
"""In a forward pass of the stream: few, so that its windows are about as large as they are to be."""
DEVICE = torch.device("cpu")


def train(settings: Settings) -> dict[str, float]:
    """Seconds of a step on batches that all processes share, and bytes per second that one tells the others."""
    sizes, share = settings.sizes, slice(processes.rank(), None, processes.count())
    step = _step(sizes, [data[share].contiguous() for data in batches(sizes, DEVICE)], share).warmed()
    found = {"seconds": _seconds(step), "tokens": sizes.batch, "moments": step.trainee.optimizer.kept}
    return found if processes.count() == 1 else found | {"gloo": _told()}


def train_large(settings: Settings) -> dict[str, float]:
    """The same in larger batches."""
    return train(replace(settings, sizes=replace(settings.sizes, batch=LARGER * settings.sizes.batch)))


def train_own(settings: Settings) -> dict[str, float]:
    """Seconds of a step of every process's own dictionary on whole batches: a study has as many dictionaries as processes, and more."""
    with processes.apart():
        step = _step(settings.sizes, batches(settings.sizes, DEVICE)).warmed()
    return {"seconds": _seconds(step, apart=True), "tokens": settings.sizes.batch * processes.count()}


def _seconds(step: OurStep, *, apart: bool = False) -> float:
    """Of a step, from the moment where all processes begin to that where all are done."""
    processes.wait()
    start = time.perf_counter()
    with processes.apart() if apart else nullcontext():
        for _ in range(STEPS):
            step()
    processes.wait()
    return (time.perf_counter() - start) / STEPS


def _told() -> float:
    content = [torch.zeros(BROADCAST_BYTES, dtype=torch.uint8)]
    processes.same(content)
    processes.wait()
    start = time.perf_counter()
    for _ in range(BROADCASTS):
        processes.same(content)
    processes.wait()
    return BROADCASTS * BROADCAST_BYTES / (time.perf_counter() - start)


def _step(sizes: Sizes, data: list[torch.Tensor], share: slice = slice(None)) -> OurStep:
    return OurStep(BatchTopK(features=sizes.features, k=sizes.k), sizes, precision("auto", DEVICE), data, DEVICE, share)


def _policy(settings: Settings, **more: object) -> HarvestPolicy:
    given = {name: getattr(settings, name) for name in ("model", "layer", "text", "context_length")}
    return HarvestPolicy.model_validate(given | {"max_tokens": settings.tokens} | more)


def harvest(settings: Settings) -> dict[str, float]:
    """Seconds of a harvest, without loading the model."""
    with tempfile.TemporaryDirectory() as own:
        out = Path(processes.told(lambda: own)) / "store"
        seconds = harvest_seconds(_policy(settings), out)
        tokens = processes.told(lambda: ActivationStore(out).rows)
        processes.wait()
    return {"seconds": seconds, "tokens": tokens}


def stream(settings: Settings) -> dict[str, float]:
    """Seconds of learning from an epoch of a stream whose first window is there, of reading its other windows alone, and of learning from
    the same batches alone, to the same bits."""
    policy = _policy(settings, stream=True, batch_size=ROWS)
    with tempfile.TemporaryDirectory() as folder:
        (store,) = harvest_policy([policy], [Path(folder) / "store"])
        sizes, rows = replace(settings.sizes, width=store.width, positions=store.positions), settings.tokens // WINDOWS
        with closing(_loader(store, policy, rows, sizes.batch)) as loader:
            given = _epoch(loader)
        alone, streamed = (_step(sizes, [batch.x.float() for batch in given]) for _ in range(2))
        learning = _learning(alone, iter(given), len(given))
        with closing(_loader(store, policy, rows, sizes.batch)) as loader:
            first = next(loader)
            seconds = _learning(streamed, chain([first], loader), len(given))
    if not torch.equal(alone.trainee.dictionary.decoder, streamed.trainee.dictionary.decoder):
        raise SystemExit("learning from a stream and from the same batches alone gave different bits")
    return {"seconds": seconds, "reading": _reading(policy, rows), "learning": learning, "tokens": len(given) * sizes.batch}


def _loader(store: ActivationStore, policy: HarvestPolicy, rows: int, batch_size: int) -> Loader:
    every = np.arange(store.sequences)
    return Loader(store, every, batch_size, SEED, windows=StreamedWindows(policy, SEED, rows, whole=False))


def _epoch(loader: Loader) -> list[Batch]:
    found = [next(loader)]
    while loader.cursor.epoch == 0:
        found.append(next(loader))
    return found


def _reading(policy: HarvestPolicy, rows: int) -> float:
    windows = StreamedWindows(policy, SEED, rows, whole=False)
    last = windows.read(0, 0)[2]
    start = time.perf_counter()
    for window in count(1):
        if last:
            break
        last = windows.read(0, window)[2]
    return time.perf_counter() - start


def _learning(step: OurStep, given: Iterator[Batch], steps: int) -> float:
    start = time.perf_counter()
    for batch in islice(given, steps):
        step.learn(batch.x.float(), batch.position)
    return time.perf_counter() - start


def main() -> None:
    given = json.loads(sys.argv[2])
    settings = Settings(**given | {"sizes": Sizes(**given["sizes"])})
    torch.set_num_threads(1)
    with processes.joined():
        works = {"train": train, "train_large": train_large, "train_own": train_own, "harvest": harvest, "stream": stream}
        found = works[sys.argv[1]](settings)
        if processes.rank() == 0:
            print(json.dumps(found))


if __name__ == "__main__":
    main()
