"""One dictionary while it is trained: its optimizer, its step, its counters, its line of the history, and what a checkpoint holds of it.

A step minimises `objective` on one view of a batch (`views`), with the decoder's rows kept at unit norm. Several processes hold the same
dictionary: each learns from its share of the batch, and gradients and counts are added up.
"""

import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from temporallens import processes
from temporallens.activations.loader import Cursor
from temporallens.dictionaries.base import ArmConfig
from temporallens.dictionaries.expectations.tables import Expectation
from temporallens.dictionaries.steps import Dead, Forward, Progress
from temporallens.errors import DivergedError
from temporallens.memory import keep_freed_memory
from temporallens.precision import DTYPES, precision
from temporallens.training.history import History, Trouble, Window
from temporallens.training.objective import Losses, objective
from temporallens.training.optimizer import Optimizer
from temporallens.training.policy import TrainingPolicy
from temporallens.training.scales import PositionScales, flat_scales
from temporallens.training.snapshots import snapshot_steps
from temporallens.training.views import View
from temporallens.training.weights import PositionWeights, adaptive_weights

REVIVED = 0.25
"""At most this share of the features is revived at a time, which bounds what AuxK costs."""


class ArmRun(NamedTuple):
    """One dictionary to train."""

    name: str  # its folder
    arm: ArmConfig
    seed: int  # of its initial weights


class Trainee:
    """One dictionary while it is trained: weights, optimizer, counters and history. `scales` is what is known of positions
    beforehand; without it, they are taken to be alike. `expectation` is what is known of tokens, in the units of training."""

    def __init__(
        self,
        run: ArmRun,
        width: int,
        positions: int,
        policy: TrainingPolicy,
        device: torch.device,
        scales: PositionScales | None = None,
        expectation: Expectation | None = None,
    ) -> None:
        keep_freed_memory()
        self.run, self._policy = run, policy
        scales = scales or flat_scales(positions, width)
        generator = torch.Generator().manual_seed(run.seed)
        self.dictionary = run.arm.make(width, positions, generator)
        if run.arm.centre != "pooled":
            gain = scales.gain if run.arm.centre == "position_scaled" else torch.ones_like(scales.gain)
            self.dictionary.centre_by_position(scales.offset.clone(), gain.clone())
        self.dictionary.expectation = expectation
        self.dictionary = self.dictionary.to(device)
        self._adaptive = adaptive_weights(run.arm, self.dictionary, scales.to(device))
        self.dictionary.encoder_dtype = DTYPES[precision(policy.encoder_dtype, device)]
        self._learning_rate = policy.learning_rate if run.arm.learning_rate is None else run.arm.learning_rate
        self.optimizer = Optimizer(self.dictionary.rates(), self._learning_rate)
        self._tokens_since_fired = torch.zeros(self.dictionary.features, dtype=torch.int64, device=device)
        self._positions = positions
        self._dead_features = 0  # when last looked: asking in every step would make the program wait for the device
        self._window = Window(positions, device)
        self.snapshots = snapshot_steps(self.dictionary, policy)
        self.history = History()
        self.seconds = 0.0

    def step(self, view: View, progress: Progress) -> None:
        """Learn from one view of a batch."""
        started, dictionary = time.perf_counter(), self.dictionary
        dictionary.advance(progress)
        forward = dictionary.learn(view.x, view.label, view.previous, view.context)
        losses = self._losses(view, forward)
        self.optimizer.forget_gradients()
        losses.loss.backward()
        self.optimizer.sum_gradients()
        dictionary.remove_parallel_gradient()
        self.optimizer.step(self._rate(progress.step))
        dictionary.normalise_decoder()
        with torch.no_grad():
            dictionary.observe(view.x, view.label, forward, losses.residual, progress)
        self._look_back(losses, forward, view)
        self.seconds += time.perf_counter() - started

    def _losses(self, view: View, forward: Forward) -> Losses:
        weights = self._adaptive.of_rows(view.label)._replace(gain=self.dictionary.gain(view.position))
        arm, policy = self.run.arm, self._policy
        return objective(self.dictionary, forward, view.x, view.label, arm.penalty, policy.auxiliary, self._dead(), weights)

    def _look_back(self, losses: Losses, forward: Forward, view: View) -> None:
        """Note what the step says about features and positions; labels, permuted or not, are as many as the positions are."""
        seen = self._tokens_since_fired + processes.total(len(view.label))
        self._tokens_since_fired = torch.where(processes.summed(forward.fired) > 0, 0, seen)
        count = losses.per_row.new_zeros(self._positions).index_add_(0, view.label, torch.ones_like(losses.per_row))
        self._adaptive.follow(losses.per_row, forward.magnitude.detach(), view.label, count)
        if self._adaptive.by_loss is not None:
            self.dictionary.follow_weights(self._adaptive.by_loss.weights)
        parts = {"loss": losses.loss, "mse_loss": losses.mse, "sparsity_loss": losses.sparsity}
        self._window.add(parts, losses.per_row, forward.active, view.position, count)

    def _dead(self) -> Dead | None:
        """As many features as were dead when last looked, those that have not fired for longest."""
        count = min(self._dead_features, math.ceil(self.dictionary.features * REVIVED))
        if count == 0:
            return None
        longest = self._tokens_since_fired.topk(count)
        return Dead(longest.indices, (longest.values >= self._policy.dead_after).float())

    def _count_dead(self) -> int:
        self._dead_features = int((self._tokens_since_fired >= self._policy.dead_after).sum())
        return self._dead_features

    def _rate(self, step: int) -> float:
        return self._learning_rate * self._policy.rate(step)

    def log(self, step: int, batches: Sequence[Cursor]) -> None:
        """Add a line to the history; `batches` says where the loader was for each step since the last one. Raises DivergedError
        when a loss is not finite or leaps, naming step and batch, or when no feature fires."""
        first = step + 2 - self._window.steps
        if trouble := self._window.trouble(self.history):
            raise DivergedError(self._trouble(trouble, first + trouble.step, batches[trouble.step]), self.run.name)
        line = self._window.line()
        steps = f"between steps {first} and {step + 1}"
        if line["l0"] == 0:
            raise DivergedError(
                f"no feature of '{self.run.name}' fired {steps}: its codes are constant; lower its sparsity or its learning rate",
                self.run.name,
            )
        openness = self.dictionary.openness()
        line |= {
            "step": step + 1,
            "tokens": (step + 1) * self._policy.batch_size,
            "dead_features": self._count_dead(),
            "temperature": self.dictionary.temperature,
            "openness": 1.0 if openness is None else float(openness.mean()),
            "learning_rate": self._rate(step),
            "position_weight": _column(self._adaptive.by_loss, self._positions),
            "sparsity_weight": _column(self._adaptive.sparsity, self._positions),
        }
        self.history.append(line)
        self._window = Window(self._positions, self._tokens_since_fired.device)

    def _trouble(self, trouble: Trouble, step: int, batch: Cursor) -> str:
        where = f"at step {step}, on the batch at row {batch.row} of window {batch.window} of epoch {batch.epoch}"
        rows = f"give batches of 32 rows of text or more (training.batch_size is {self._policy.batch_size} tokens), "
        remedy = f"lower its learning rate (now {self._learning_rate}), or look for outliers in that batch"
        remedy = rows + remedy if self.run.arm.wants_sequences else remedy
        if not math.isfinite(trouble.loss):
            return f"the loss of '{self.run.name}' became NaN or infinite {where}; {remedy}"
        times = trouble.loss / trouble.usual
        return f"the loss of '{self.run.name}' leapt to {trouble.loss:.3g}, {times:,.0f} times what is usual, {where}; {remedy}"

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a checkpoint must hold, by name."""
        named = {f"dictionary/{name}": tensor for name, tensor in self.dictionary.state_dict().items()}
        named |= {f"history/{name}": tensor for name, tensor in self.history.tensors().items()}
        named |= {f"optimizer/{name}": tensor for name, tensor in self.optimizer.tensors().items()}
        named |= {f"weights/{name}": tensor for name, tensor in self._adaptive.tensors().items()}
        named["tokens_since_fired"] = self._tokens_since_fired
        return named

    def restore(self, tensors: dict[str, Tensor], progress: Progress) -> None:
        """Take back what `tensors` gave, at the step where it was saved."""
        parts: dict[str, dict[str, Tensor]] = {"dictionary": {}, "history": {}, "optimizer": {}, "weights": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition("/")
            if rest:
                parts[part][rest] = tensor
        self.dictionary.load_state_dict(parts["dictionary"])
        self.dictionary.advance(progress)
        self.history = History.from_tensors(parts["history"])
        self._adaptive.restore(parts["weights"])
        if self._adaptive.by_loss is not None:
            self.dictionary.follow_weights(self._adaptive.by_loss.weights)
        self._tokens_since_fired.copy_(tensors["tokens_since_fired"])
        self._count_dead()
        self.optimizer.restore(parts["optimizer"])


def _column(weights: PositionWeights | None, positions: int) -> np.ndarray:
    """Weights as the history keeps them."""
    return np.ones(positions, dtype=np.float32) if weights is None else weights.weights.cpu().numpy()
