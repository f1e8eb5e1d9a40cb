"""The training loop: several arms and seeds side by side, from one pass over the store, each batch the same for all.

Batches are prepared once for all arms (`views`). A checkpoint holds every arm's weights, optimizer, dead-feature counters,
position weights and history, and the loader's cursor: a run that was interrupted and goes on ends with the same bits as one that
never stopped.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from temporallens.activations.loader import Cursor, Loader, Mixing
from temporallens.activations.store import ActivationStore
from temporallens.defaults import own_defaults
from temporallens.dictionaries.base import ArmConfig, Dead, Dictionary, Forward, Previous, Progress
from temporallens.dictionaries.saving import load_dictionary, save_dictionary
from temporallens.errors import TemporalLensError
from temporallens.files import locked, user_path, write_json
from temporallens.memory import keep_freed_memory
from temporallens.precision import DTYPES, device_for, precision
from temporallens.progress import progress
from temporallens.settings import whole_seed
from temporallens.stopping import held_signals
from temporallens.training import snapshots
from temporallens.training.checkpoint import Checkpoints, checkpoint_file, remove_checkpoints, training_settings
from temporallens.training.history import History, Trouble, Window
from temporallens.training.objective import Inputs, Losses, inputs_for, objective
from temporallens.training.policy import TrainingPolicy
from temporallens.training.scales import PositionScales, flat_scales, position_scales
from temporallens.training.views import Views
from temporallens.training.weights import PositionWeights, adaptive_weights

CALIBRATION_BATCHES = 32
"""Batches over which inference thresholds are measured, with the final weights (`docs/method.md`)."""

REVIVED = 0.25
"""At most this share of the features is revived at a time, which bounds what AuxK costs."""


class ArmRun(NamedTuple):
    """One dictionary to train."""

    name: str  # its folder
    arm: ArmConfig
    seed: int  # of its initial weights


class TrainedArm(NamedTuple):
    """What training leaves behind."""

    folder: Path
    dictionary: Dictionary  # in raw units, read back from the folder
    summary: dict[str, Any]  # training.json


class Trainee:
    """One dictionary while it is trained: weights, optimizer, counters and history. `scales` is what is known of positions
    beforehand; without it, they are taken to be alike."""

    def __init__(
        self,
        run: ArmRun,
        width: int,
        positions: int,
        policy: TrainingPolicy,
        device: torch.device,
        scales: PositionScales | None = None,
    ) -> None:
        keep_freed_memory()
        self.run, self._policy = run, policy
        scales = scales or flat_scales(positions, width)
        generator = torch.Generator().manual_seed(run.seed)
        self.dictionary = run.arm.make(width, positions, generator)
        if run.arm.centre != "pooled":
            gain = scales.gain if run.arm.centre == "position_scaled" else torch.ones_like(scales.gain)
            self.dictionary.wear(scales.offset.clone(), gain.clone())
        self.dictionary = self.dictionary.to(device)
        self._adaptive = adaptive_weights(run.arm, self.dictionary, scales.to(device))
        groups = [{"params": parameters, "multiple": multiple} for parameters, multiple in self.dictionary.rates()]
        self.dictionary.encoder_dtype = DTYPES[precision(policy.encoder_dtype, device)]
        self._optimizer = torch.optim.Adam(groups, lr=policy.learning_rate, fused=True)
        self._tokens_since_fired = torch.zeros(self.dictionary.features, dtype=torch.int64, device=device)
        self._positions = positions
        self._dead_features = 0  # when last looked: asking in every step would make the program wait for the device
        self._window = Window(positions, device)
        self.history = History()
        self.seconds = 0.0

    def step(
        self,
        x: Float[Tensor, "N D"],
        label: Int[Tensor, " N"],
        place: Progress,
        position: Int[Tensor, " N"] | None = None,
        previous: Previous | None = None,
    ) -> None:
        """Learn from one view of a batch (`views.View`); `position` holds the true positions where labels are others."""
        started = time.perf_counter()
        dictionary = self.dictionary
        position = label if position is None else position
        dictionary.advance(place)
        self._set_rate(place.step)
        forward = dictionary.training_forward(x, label, previous)
        weights = self._adaptive.of_rows(label)._replace(gain=dictionary.gain(position))
        losses = objective(dictionary, forward, x, label, self.run.arm.penalty, self._policy.auxiliary, self._dead(), weights)
        self._optimizer.zero_grad(set_to_none=True)
        losses.loss.backward()
        dictionary.remove_parallel_gradient()
        self._optimizer.step()
        dictionary.normalise_decoder()
        with torch.no_grad():
            dictionary.observe(x, label, forward, losses.residual, place)
        self._look_back(losses, forward, label, position)
        self.seconds += time.perf_counter() - started

    def _look_back(self, losses: Losses, forward: Forward, label: Int[Tensor, " N"], position: Int[Tensor, " N"]) -> None:
        """Keep what the step says about features and positions; labels, permuted or not, are as many as the positions are."""
        self._tokens_since_fired = torch.where(forward.fired > 0, 0, self._tokens_since_fired + len(label))
        count = losses.per_row.new_zeros(self._positions).index_add_(0, label, torch.ones_like(losses.per_row))
        self._adaptive.follow(losses.per_row, forward.magnitude.detach(), label, count)
        if self._adaptive.by_loss is not None:
            self.dictionary.follow_weights(self._adaptive.by_loss.weights)
        parts = {"loss": losses.loss, "mse_loss": losses.mse, "sparsity_loss": losses.sparsity}
        self._window.add(parts, losses.per_row, forward.active, position, count)

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

    def _set_rate(self, step: int) -> None:
        rate = self._policy.learning_rate * self._policy.rate(step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group["multiple"]

    def log(self, step: int, batches: Sequence[Cursor]) -> None:
        """Add a line to the history; `batches` says where the loader was for each step since the last one. Raises TemporalLensError
        when a loss is not finite or leaps, naming step and batch, or when no feature fires."""
        first = step + 2 - self._window.steps
        if trouble := self._window.trouble(self.history):
            raise TemporalLensError(self._trouble(trouble, first + trouble.step, batches[trouble.step]))
        line = self._window.line()
        steps = f"between steps {first} and {step + 1}"
        if line["l0"] == 0:
            raise TemporalLensError(
                f"no feature of '{self.run.name}' fired {steps}: its codes are constant; lower its sparsity or training.learning_rate"
            )
        openness = self.dictionary.openness()
        line |= {
            "step": step + 1,
            "tokens": (step + 1) * self._policy.batch_size,
            "dead_features": self._count_dead(),
            "temperature": self.dictionary.temperature,
            "openness": 1.0 if openness is None else float(openness.mean()),
            "learning_rate": self._policy.learning_rate * self._policy.rate(step),
            "position_weight": _column(self._adaptive.by_loss, self._positions),
            "sparsity_weight": _column(self._adaptive.sparsity, self._positions),
        }
        self.history.append(line)
        self._window = Window(self._positions, self._tokens_since_fired.device)

    def _trouble(self, trouble: Trouble, step: int, batch: Cursor) -> str:
        place = f"at step {step}, on the batch at row {batch.row} of window {batch.window} of epoch {batch.epoch}"
        remedy = f"lower training.learning_rate (now {self._policy.learning_rate}), or look for outliers in that batch"
        if not math.isfinite(trouble.loss):
            return f"the loss of '{self.run.name}' became NaN or infinite {place}; {remedy}"
        times = trouble.loss / trouble.usual
        return f"the loss of '{self.run.name}' leapt to {trouble.loss:.3g}, {times:,.0f} times what is usual, {place}; {remedy}"

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a checkpoint must hold, by name."""
        named = {f"dictionary/{name}": tensor for name, tensor in self.dictionary.state_dict().items()}
        named |= {f"history/{name}": tensor for name, tensor in self.history.tensors().items()}
        for number, state in self._optimizer.state_dict()["state"].items():
            named |= {f"optimizer/{number}/{name}": tensor for name, tensor in state.items()}
        named |= {f"weights/{name}": tensor for name, tensor in self._adaptive.tensors().items()}
        named["tokens_since_fired"] = self._tokens_since_fired
        return named

    def restore(self, tensors: dict[str, Tensor], place: Progress) -> None:
        """Take back what `tensors` gave, at the step where it was saved."""
        parts: dict[str, dict[str, Tensor]] = {"dictionary": {}, "history": {}, "optimizer": {}, "weights": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition("/")
            if rest:
                parts[part][rest] = tensor
        self.dictionary.load_state_dict(parts["dictionary"])
        self.dictionary.advance(place)
        self.history = History.from_tensors(parts["history"])
        self._adaptive.restore(parts["weights"])
        if self._adaptive.by_loss is not None:
            self.dictionary.follow_weights(self._adaptive.by_loss.weights)
        self._tokens_since_fired.copy_(tensors["tokens_since_fired"])
        self._count_dead()
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in parts["optimizer"].items():
            number, _, field = name.partition("/")
            state.setdefault(int(number), {})[field] = tensor
        self._optimizer.load_state_dict({"state": state, "param_groups": self._optimizer.state_dict()["param_groups"]})


def _column(weights: PositionWeights | None, positions: int) -> np.ndarray:
    """Weights as the history keeps them."""
    return np.ones(positions, dtype=np.float32) if weights is None else weights.weights.cpu().numpy()


@own_defaults()
def train_arms(
    store: ActivationStore, runs: Sequence[ArmRun], policy: TrainingPolicy, out: Path | str, device: str | None = None
) -> dict[str, TrainedArm]:
    """Train `runs` side by side; each leaves `out/<name>/` with its dictionary, `history.safetensors` and `training.json`.

    Interrupted and called again with the same arguments, it goes on from its last checkpoint. Raises TemporalLensError for runs
    that are none, when the store cannot be divided by document, when a loss is not finite, or when a dictionary's codes are constant.
    """
    runs = _checked(runs)
    out, target = user_path(out), torch.device(device_for(device))
    split = store.split(policy.held_out, policy.data_seed)
    moments = store.moments_of(split.train)
    if int(moments.count.sum()) == 0 or float(moments.pooled_variance()) <= 0:
        raise TemporalLensError(f"the activations in {store.folder} are constant: there is nothing for a dictionary to learn")
    inputs = inputs_for(moments.pooled_mean(), moments.pooled_variance())
    scales = position_scales(moments, inputs)
    trainees = [Trainee(run, store.width, store.positions, policy, target, scales) for run in runs]
    neighbours = any(trainee.dictionary.wants_previous for trainee in trainees)
    loader = Loader(store, split.train, policy.batch_size, policy.data_seed, neighbours=neighbours)
    mixing = loader.mixing()
    path = checkpoint_file(out, training_settings(store, runs, policy))
    checkpoints = Checkpoints(path)
    start = _resume(checkpoints, trainees, loader, policy)
    kept = {trainee.run.name: snapshots.steps_kept(trainee.dictionary, policy) for trainee in trainees}
    here = inputs._replace(centre=inputs.centre.to(target))
    with held_signals() as stopping, progress(f"training {len(runs)} arms", policy.steps * policy.batch_size, "tokens") as advance:
        advance(start * policy.batch_size)
        batches: list[Cursor] = []  # since the last logged step
        for step in range(start, policy.steps):
            batches.append(loader.cursor)
            views = Views(next(loader), here, policy.data_seed, step)
            logged = (step + 1) % policy.log_every == 0 or step + 1 == policy.steps
            for trainee in trainees:
                view = views.of(trainee.run.arm, trainee.dictionary)
                trainee.step(view.x, view.label, Progress(step, policy.steps), view.position, view.previous)
                if logged:
                    _log(trainee, step, batches, checkpoints)
                if step + 1 in kept[trainee.run.name]:
                    snapshots.take(trainee.dictionary, snapshots.taken_file(path, trainee.run.name, step + 1))
            advance(policy.batch_size)
            batches = [] if logged else batches
            if logged and (stopping() or ((step + 1) // policy.log_every) % _logs_per_checkpoint(policy) == 0):
                _save(checkpoints, trainees, loader, step + 1)
                if stopping():
                    break
    finishing = _Finishing(store, loader, loader.cursor, inputs, mixing, policy, out, target)
    for steps in sorted({steps for own in kept.values() for steps in own}):
        finishing.save_snapshots([trainee.run for trainee in trainees if steps in kept[trainee.run.name]], steps, path, kept)
    for trainee in trainees:
        trainee.dictionary.advance(Progress(policy.steps, policy.steps))
    finishing.calibrate({trainee.run: trainee.dictionary for trainee in trainees})
    trained = {trainee.run.name: finishing.save(trainee) for trainee in trainees}
    loader.close()
    remove_checkpoints(path)
    return trained


def _checked(runs: Sequence[ArmRun]) -> list[ArmRun]:
    """The runs, with their seeds as Python's whole numbers."""
    if not runs:
        raise TemporalLensError("there is no run to train")
    names = [run.name for run in runs]
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or names.count(name) > 1:
            raise TemporalLensError(f"a run is called {name!r}: its name should be that of a folder, and of no other run")
    for run in runs:
        if not isinstance(run.arm, ArmConfig):
            raise _no_arm(run.arm)
    return [run._replace(seed=whole_seed(run.seed)) for run in runs]


def _no_arm(arm: Any) -> TemporalLensError:
    return TemporalLensError(f"arm should be one of the arms with its settings, such as tl.BatchTopK(features=2304, k=32), and is {arm!r}")


def _log(trainee: Trainee, step: int, batches: Sequence[Cursor], checkpoints: Checkpoints) -> None:
    """A line of the history, or the end of the run with a word on what is kept of it."""
    try:
        trainee.log(step, batches)
    except TemporalLensError as error:
        raise TemporalLensError(f"{error}; {checkpoints.kept()}") from error


def _logs_per_checkpoint(policy: TrainingPolicy) -> int:
    """Checkpoints fall on logged steps, where the sums of the history are empty and need not be saved."""
    return max(1, round(policy.checkpoint_every / policy.log_every))


def _save(checkpoints: Checkpoints, trainees: list[Trainee], loader: Loader, step: int) -> None:
    tensors = {f"{trainee.run.name}/{name}": tensor for trainee in trainees for name, tensor in trainee.tensors().items()}
    state = {"step": step, "cursor": list(loader.cursor), "seconds": {trainee.run.name: trainee.seconds for trainee in trainees}}
    checkpoints.save(tensors, state)


def _resume(checkpoints: Checkpoints, trainees: list[Trainee], loader: Loader, policy: TrainingPolicy) -> int:
    found = checkpoints.load()
    if found is None:
        return 0
    tensors, state = found
    try:
        for trainee in trainees:
            own = f"{trainee.run.name}/"
            trainee.restore(
                {name.removeprefix(own): value for name, value in tensors.items() if name.startswith(own)},
                Progress(state["step"], policy.steps),
            )
            trainee.seconds = state["seconds"][trainee.run.name]
    except (KeyError, RuntimeError) as error:
        raise TemporalLensError(f"a checkpoint was written by another version of TemporalLens; {checkpoints.kept()}: remove it") from error
    loader.restore(Cursor(*state["cursor"]))
    return int(state["step"])


@dataclass(frozen=True)
class _Finishing:
    """What is done with dictionaries once training is over: measured on the batches that would have come next, folded, saved."""

    store: ActivationStore
    loader: Loader
    cursor: Cursor  # where training ended
    inputs: Inputs
    mixing: Mixing
    policy: TrainingPolicy
    out: Path
    device: torch.device

    def calibrate(self, dictionaries: dict[ArmRun, Dictionary]) -> None:
        """Let dictionaries measure what they need, with their weights and masks as they are; each time on the same batches."""
        self.loader.restore(self.cursor)
        here = self.inputs._replace(centre=self.inputs.centre.to(self.device))
        for number in range(CALIBRATION_BATCHES):
            views = Views(next(self.loader), here, self.policy.data_seed, self.policy.steps + number)
            for run, dictionary in dictionaries.items():
                view = views.of(run.arm, dictionary)
                dictionary.finish(view.x, view.label)
        for dictionary in dictionaries.values():
            dictionary.finished()

    def save_snapshots(self, runs: list[ArmRun], steps: int, checkpoint: Path, folders: dict[str, dict[int, list[str]]]) -> None:
        """Calibrate and save the snapshots that were taken after so many steps."""
        place = Progress(steps - 1, self.policy.steps)
        taken = {}
        for run in runs:
            file = snapshots.taken_file(checkpoint, run.name, steps)
            taken[run] = snapshots.retake(file, run.arm, self.store.width, self.store.positions, place).to(self.device)
            taken[run].encoder_dtype = DTYPES[precision(self.policy.encoder_dtype, self.device)]
        self.calibrate(taken)
        for run, dictionary in taken.items():
            self._fold(dictionary)
            for folder in folders[run.name][steps]:
                save_dictionary(dictionary, self.out / run.name / folder, run.arm, self.store.positions, self._origin() | {"step": steps})

    def _fold(self, dictionary: Dictionary) -> None:
        dictionary.cpu().fold(self.inputs.centre, self.inputs.scale)

    def _origin(self) -> dict[str, Any]:
        source = self.store.manifest.description
        return {"source": source.source, "policies": source.policies}

    def save(self, trainee: Trainee) -> TrainedArm:
        """Leave behind what a finished training does; `training.json`, the proof, comes last."""
        run, folder, policy = trainee.run, self.out / trainee.run.name, self.policy
        self._fold(trainee.dictionary)
        summary = {
            "arm": run.arm.model_dump(mode="json"),
            "seed": run.seed,
            "training_steps": policy.steps,
            "tokens_seen": policy.steps * policy.batch_size,
            "final_loss": trainee.history.last("loss"),
            "mse_loss": trainee.history.last("mse_loss"),
            "sparsity_loss": trainee.history.last("sparsity_loss"),
            "scale": self.inputs.scale,
            "mixing": self.mixing._asdict(),
            "training": policy.model_dump(mode="json"),
        }
        save_dictionary(trainee.dictionary, folder, run.arm, self.store.positions, self._origin() | {"training": summary})
        trainee.history.save(folder / "history.safetensors")
        speed = policy.steps * policy.batch_size / max(trainee.seconds, 1e-9)
        write_json(folder / "timing.json", {"seconds": trainee.seconds, "tokens_per_second": speed})
        write_json(folder / "training.json", summary)
        return TrainedArm(folder, load_dictionary(folder, type(run.arm)), summary)


def train(store: ActivationStore | Path | str, arm: ArmConfig, steps: int, out: Path | str, seed: int = 0, **policy: Any) -> TrainedArm:
    """Train one arm; the dictionary, its history and its summary are written straight into the folder `out`.

    `arm` is one of the arms that come with the package, or of a subclass of `dictionaries.base.ArmConfig` of your own.
    `store` may be the folder of one; further keywords are fields of `TrainingPolicy`. Raises TemporalLensError as `train_arms`
    does, for an impossible policy, and when `out` holds a dictionary already.
    """
    out = user_path(out)
    if (out / "training.json").exists():
        raise TemporalLensError(f"{out} already holds a trained dictionary; remove it or choose another folder")
    settings = TrainingPolicy(steps=steps, **policy)
    if not isinstance(arm, ArmConfig):
        raise _no_arm(arm)
    opened = store if isinstance(store, ActivationStore) else ActivationStore(store)
    run = ArmRun(out.name, arm, whole_seed(seed))
    with locked(out):
        return train_arms(opened, [run], settings, out.parent)[run.name]
