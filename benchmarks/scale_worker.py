"""One of the processes that `benchmarks.scale` starts with `torchrun`: training steps on shared batches, whose seconds process 0 prints."""

import json
import sys
import time

import torch

from benchmarks.timing import Sizes, batches
from benchmarks.training_step import OurStep
from temporallens import processes
from temporallens.dictionaries.arms.batchtopk import BatchTopK
from temporallens.precision import precision


def main() -> None:
    sizes, steps, device = Sizes(**json.loads(sys.argv[1])), int(sys.argv[2]), torch.device("cpu")
    torch.set_num_threads(1)
    with processes.joined():
        share = slice(processes.rank(), None, processes.count())
        own = [data[share].contiguous() for data in batches(sizes, device)]
        step = OurStep(BatchTopK(features=sizes.features, k=sizes.k), sizes, precision("auto", device), own, device, share)
        step.warmed()
        processes.wait()
        start = time.perf_counter()
        for _ in range(steps):
            step()
        processes.wait()
        if processes.rank() == 0:
            print(json.dumps({"seconds": (time.perf_counter() - start) / steps}))


if __name__ == "__main__":
    main()
