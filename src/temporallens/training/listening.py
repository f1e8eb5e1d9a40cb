"""What can be seen of a training from outside while it runs: each line of the history, and every so often FVE on held-out documents.

It is handed to the loggers that the policy names (`loggers.py`), and to a function of the caller's. Where neither is asked for, nothing is
read or computed; where one is, nothing that is trained changes by a bit (`tests/training/test_loggers.py`).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from temporallens import processes
from temporallens.activations.context import Context, context_of
from temporallens.activations.store import ActivationStore
from temporallens.dictionaries.base import Dictionary
from temporallens.training.loggers import LOGGERS, Logger, Values, Watched
from temporallens.training.objective import Inputs
from temporallens.training.policy import TrainingPolicy
from temporallens.training.trainee import Trainee

OnLog = Callable[[str, int, Values], None]
"""A function of the caller's: it is given the run's name, the steps that are done, and what is known then."""

HELD_OUT_ROWS = 2048
"""Held-out activations that FVE is measured on while training, about."""
FVE = "held_out_fve"


class HeldOutRows(NamedTuple):
    """Some held-out sequences, in the units of training; the same all along."""

    x: Float[Tensor, "N D"]
    position: Int[Tensor, " N"]
    context: Context
    kept: Bool[Tensor, " N"]  # no sinks, no special tokens

    @classmethod
    def of(cls, store: ActivationStore, held_out: Int[np.ndarray, " n"], inputs: Inputs) -> "HeldOutRows":
        """Evenly spaced sequences of these entries."""
        lengths = store.sequence_table.length[held_out]
        count = max(1, min(len(held_out), HELD_OUT_ROWS // max(1, int(lengths.mean()))))
        chosen = held_out[np.linspace(0, len(held_out) - 1, count).astype(np.int64)]
        rows, device = store.read(chosen), inputs.centre.device
        x = inputs.normalise(rows.x.to(device))
        return cls(x, rows.position.long().to(device), context_of(rows).to(device), (rows.excluded == 0).to(device))

    @torch.no_grad()
    def fve(self, dictionary: Dictionary) -> float:
        """Of the dictionary as it is, with its running threshold; NaN where nothing is kept. The one process that measures asks no
        other: a choice over the rows of all processes would wait for those that are learning."""
        with processes.apart():
            found = dictionary.reconstructed(self.x, self.position, self.context).x[self.kept].double()
        x = self.x[self.kept].double()
        return float(1 - (x - found).square().sum() / (x - x.mean(0)).square().sum())


class Listeners(NamedTuple):
    """Who is told of a training, and what."""

    policy: TrainingPolicy
    out: Path
    on_log: OnLog | None
    held_out: Callable[[], HeldOutRows]
    every: int  # lines of the history from one measurement of FVE to the next

    @contextmanager
    def begun(self, trainees: Sequence[Trainee], start: int) -> Iterator[Callable[[int], None]]:
        """Loggers are open as long as this is; yields a function that is called at every logged step, with the steps that are
        done. Of several processes the first one tells."""
        if processes.rank() != 0 or (not self.policy.loggers and self.on_log is None):
            yield lambda step: None
            return
        rows = self.held_out()
        with ExitStack() as open_ones:
            loggers = {trainee.run.name: self._opened(trainee, start, open_ones) for trainee in trainees}

            def tell(step: int) -> None:
                measured = (step // self.policy.log_every) % self.every == 0 or step == self.policy.steps
                for trainee in trainees:
                    values = trainee.history.latest() | ({FVE: rows.fve(trainee.dictionary)} if measured else {})
                    for logger in loggers[trainee.run.name]:
                        logger.log(step, values)
                    if self.on_log is not None:
                        self.on_log(trainee.run.name, step, values)

            yield tell

    def _opened(self, trainee: Trainee, start: int, open_ones: ExitStack) -> list[Logger]:
        run, opened = trainee.run, []
        settings = {
            "arm": run.arm.model_dump(mode="json"),
            "seed": run.seed,
            "training": self.policy.model_dump(mode="json"),
        }
        for name in self.policy.loggers:
            logger = LOGGERS[name].start(Watched(run.name, str(self.out), self.out / run.name, settings, start))
            open_ones.callback(logger.close)
            opened.append(logger)
        return opened
