"""The training loop: several arms and seeds side by side, from one pass over the store, each batch the same for all.

Batches are prepared once for all arms (`views`). A checkpoint holds every arm's weights, optimizer, dead-feature counters,
position weights and history, and the loader's cursor: a run that was interrupted and goes on ends with the same bits as one that
never stopped. Several processes share every batch, and process 0 writes: nothing in a checkpoint depends on how many they were.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import torch

from temporallens import processes
from temporallens.activations.language.harvest import HarvestPolicy
from temporallens.activations.language.streams import StreamedWindows
from temporallens.activations.loader import Cursor, Loader, window_rows
from temporallens.activations.store import ActivationStore
from temporallens.defaults import own_defaults
from temporallens.dictionaries.base import ArmConfig, Dictionary
from temporallens.dictionaries.steps import Progress
from temporallens.errors import DivergedError, TemporalLensError
from temporallens.files import locked, user_path
from temporallens.precision import device_for
from temporallens.progress import progress
from temporallens.settings import whole_seed
from temporallens.stopping import held_signals
from temporallens.training.checkpoint import Checkpoints, checkpoint_file, remove_checkpoints, training_settings
from temporallens.training.expectations import Expectations
from temporallens.training.finishing import Finishing, TrainedArm
from temporallens.training.listening import HeldOutRows, Listeners, OnLog
from temporallens.training.loggers import check_loggers
from temporallens.training.objective import Inputs, inputs_for
from temporallens.training.policy import TrainingPolicy
from temporallens.training.scales import position_scales
from temporallens.training.snapshots import save_snapshot, snapshot_file
from temporallens.training.trainee import ArmRun, Trainee
from temporallens.training.views import Views
from temporallens.training.watch import Watch


@own_defaults()
def train_arms(
    store: ActivationStore,
    runs: Sequence[ArmRun],
    policy: TrainingPolicy,
    out: Path | str,
    device: str | None = None,
    stream: HarvestPolicy | None = None,
    on_log: OnLog | None = None,
) -> dict[str, TrainedArm]:
    """Train `runs` side by side; each leaves `out/<name>/` with its dictionary, `history.safetensors` and `training.json`. With `stream`,
    by which the store was harvested, batches come from its model, and the store says what is known beforehand.

    `on_log` is called with each line of a run's history: its name, the steps that are done, and numbers by name, those by position as
    arrays; every `checkpoint_every` steps `held_out_fve` is among them.

    Interrupted and called again with the same arguments, it goes on from its last checkpoint. Raises TemporalLensError for runs
    that are none, when the store has a target, when it cannot be divided by document, when a loss is not finite, or when a dictionary's
    codes are constant.
    """
    runs = _checked(runs, policy)
    check_loggers(policy.loggers)
    if store.target is not None:
        raise TemporalLensError(
            f"{store.folder} has a target, for transcoders that are trained already: what is trained here gives back what it takes"
        )
    out, target = user_path(out), torch.device(device_for(device))
    split = store.split(policy.held_out, policy.data_seed)
    moments = store.moments_of(split.train)
    if int(moments.count.sum()) == 0 or float(moments.pooled_variance()) <= 0:
        raise TemporalLensError(f"the activations in {store.folder} are constant: there is nothing for a dictionary to learn")
    inputs = inputs_for(moments.pooled_mean(), moments.pooled_variance())
    scales = position_scales(moments, inputs)
    checkpoint = checkpoint_file(out, training_settings(store, runs, policy))
    expectations = Expectations(store, split.train, inputs, scales, checkpoint)
    trainees = [Trainee(run, store.width, store.positions, policy, target, scales, expectations.of(run.arm)) for run in runs]
    neighbours = any(trainee.dictionary.wants_previous for trainee in trainees)
    whole = policy.batches == "rows"
    windows = None if stream is None else StreamedWindows(stream, policy.data_seed, window_rows(store, policy.batch_size), whole)
    loader = Loader(store, split.train, policy.batch_size, policy.data_seed, neighbours=neighbours, whole=whole, windows=windows)
    with closing(loader):
        mixing = loader.mixing()
        start = partial(Dictionary.begin, store=store, entries=split.train, centre=inputs.centre, scale=inputs.scale)
        held_out = partial(HeldOutRows.of, store, split.held_out, inputs.to(target))
        listeners = Listeners(policy, out, on_log, held_out, _logs_per_checkpoint(policy))
        _learn(trainees, loader, inputs.to(target), policy, checkpoint, start, listeners)
        finishing = Finishing(store, split.train, loader, loader.cursor, inputs, expectations, mixing, policy, out, target)
        for steps in sorted({steps for trainee in trainees for steps in trainee.snapshots}):
            finishing.save_snapshots(trainees, steps, checkpoint)
        for trainee in trainees:
            trainee.dictionary.advance(Progress(policy.steps, policy.steps))
        finishing.calibrate({trainee.run: trainee.dictionary for trainee in trainees})
        trained = {trainee.run.name: finishing.save(trainee) for trainee in trainees}
    processes.once(partial(remove_checkpoints, checkpoint))
    return trained


def _learn(
    trainees: list[Trainee],
    loader: Loader,
    inputs: Inputs,
    policy: TrainingPolicy,
    checkpoint: Path,
    begin: Callable[[Dictionary], None],
    listeners: Listeners,
) -> None:
    """The steps that are left, with a checkpoint every so often, and one where a signal asks to stop."""
    checkpoints = Checkpoints(checkpoint)
    start = _resume(checkpoints, trainees, loader, policy)
    if start == 0:
        for trainee in trainees:
            begin(trainee.dictionary)
            processes.same(trainee.dictionary.state_dict().values())
    bar = progress(f"training {len(trainees)} arms", policy.steps * policy.batch_size, "tokens")
    with listeners.begun(trainees, start) as tell, held_signals() as stopping, bar as advance:
        advance(start * policy.batch_size)
        batches: list[Cursor] = []  # since the last logged step
        watch = Watch()
        for step in range(start, policy.steps):
            batches.append(loader.cursor)
            with watch.waiting():
                batch = next(loader)
            views = Views(batch, inputs, policy.data_seed, step)
            logged = (step + 1) % policy.log_every == 0 or step + 1 == policy.steps
            for trainee in trainees:
                trainee.step(views.of(trainee.run.arm, trainee.dictionary), Progress(step, policy.steps))
                if logged:
                    _log(trainee, step, batches, checkpoints)
                if step + 1 in trainee.snapshots:
                    file = snapshot_file(checkpoint, trainee.run.name, step + 1)
                    processes.once(partial(save_snapshot, trainee.dictionary, file))
            if logged:
                tell(step + 1)
            advance(policy.batch_size, watch.words(trainees) if logged else "")
            batches = [] if logged else batches
            if not logged:
                continue
            stop = processes.anywhere(stopping())
            if stop or ((step + 1) // policy.log_every) % _logs_per_checkpoint(policy) == 0:
                _save(checkpoints, trainees, loader, step + 1)
            if stop and not stopping():
                raise KeyboardInterrupt  # another process was asked to stop
            if stop:
                break


def _checked(runs: Sequence[ArmRun], policy: TrainingPolicy) -> list[ArmRun]:
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
        run.arm.check_training(policy.batches)
        run.arm.check_sharing()
    return [run._replace(seed=whole_seed(run.seed)) for run in runs]


def _no_arm(arm: Any) -> TemporalLensError:
    return TemporalLensError(f"arm should be one of the arms with its settings, such as tl.BatchTopK(features=2304, k=32), and is {arm!r}")


def _log(trainee: Trainee, step: int, batches: Sequence[Cursor], checkpoints: Checkpoints) -> None:
    """A line of the history, or the end of the run with a word on its last good checkpoint."""
    try:
        trainee.log(step, batches)
    except DivergedError as error:
        raise DivergedError(f"{error}; {checkpoints.last_good()}", error.run) from error


def _logs_per_checkpoint(policy: TrainingPolicy) -> int:
    """Checkpoints fall on logged steps, where the sums of the history are empty and need not be saved."""
    return max(1, round(policy.checkpoint_every / policy.log_every))


def _save(checkpoints: Checkpoints, trainees: list[Trainee], loader: Loader, step: int) -> None:
    tensors = {f"{trainee.run.name}/{name}": tensor for trainee in trainees for name, tensor in trainee.tensors().items()}
    state = {"step": step, "cursor": list(loader.cursor), "seconds": {trainee.run.name: trainee.seconds for trainee in trainees}}
    processes.once(partial(checkpoints.save, tensors, state))


def _resume(checkpoints: Checkpoints, trainees: list[Trainee], loader: Loader, policy: TrainingPolicy) -> int:
    found = checkpoints.load()
    if found is None:
        return 0
    tensors, state = found
    try:
        for trainee in trainees:
            prefix = f"{trainee.run.name}/"
            trainee.restore(
                {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)},
                Progress(state["step"], policy.steps),
            )
            trainee.seconds = state["seconds"][trainee.run.name]
    except (KeyError, RuntimeError) as error:
        raise TemporalLensError(
            f"a checkpoint was written by another version of TemporalLens; {checkpoints.last_good()}: remove it"
        ) from error
    loader.restore(Cursor(*state["cursor"]))
    return int(state["step"])


def train(
    store: ActivationStore | Path | str,
    arm: ArmConfig,
    steps: int,
    out: Path | str,
    seed: int = 0,
    *,
    on_log: OnLog | None = None,
    **policy: Any,
) -> TrainedArm:
    """Train one arm; the dictionary, its history and its summary are written straight into the folder `out`.

    `arm` is one of the arms that come with the package, or of a subclass of `dictionaries.base.ArmConfig` of your own.
    `store` may be the folder of one; further keywords are fields of `TrainingPolicy`, `loggers` among them. `on_log` is called with each
    line of the history, as `train_arms` says. Raises TemporalLensError as `train_arms` does, for an impossible policy, and when `out` holds
    a dictionary already.
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
        return train_arms(opened, [run], settings, out.parent, on_log=on_log)[run.name]
