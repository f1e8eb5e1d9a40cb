"""What a finished training leaves: dictionaries that are measured on the batches that would have come next, folded into raw units and
saved, with their histories and summaries."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int

from temporallens import processes
from temporallens.activations.loader import Cursor, Loader, Mixing
from temporallens.activations.store import ActivationStore
from temporallens.dictionaries.base import ArmConfig, Dictionary
from temporallens.dictionaries.saving import load_dictionary, save_dictionary
from temporallens.dictionaries.steps import Progress
from temporallens.files import read_json, write_json
from temporallens.precision import DTYPES, precision
from temporallens.training.expectations import Expectations
from temporallens.training.left_out import fit_past, left_out, measure_thresholds
from temporallens.training.objective import Inputs
from temporallens.training.policy import TrainingPolicy
from temporallens.training.snapshots import load_snapshot, snapshot_file
from temporallens.training.trainee import ArmRun, Trainee
from temporallens.training.views import Views

CALIBRATION_BATCHES = 32
"""Batches over which inference thresholds are measured, with the final weights (`docs/method.md`)."""


class TrainedArm(NamedTuple):
    """What training leaves behind."""

    folder: Path
    dictionary: Dictionary  # in raw units, read back from the folder
    summary: dict[str, Any]  # training.json


@dataclass(frozen=True)
class Finishing:
    """What is done with dictionaries once training is over: measured on the batches that would have come next, folded, saved."""

    store: ActivationStore
    train: Int[np.ndarray, " n"]  # entries of the sequence table
    loader: Loader
    cursor: Cursor  # where training ended
    inputs: Inputs
    expectations: Expectations
    mixing: Mixing
    policy: TrainingPolicy
    out: Path
    device: torch.device

    def calibrate(self, dictionaries: dict[ArmRun, Dictionary]) -> None:
        """Let dictionaries measure what they need, with their weights and masks as they are; each time on the same batches."""
        self.loader.restore(self.cursor)
        inputs = self.inputs.to(self.device)
        for number in range(CALIBRATION_BATCHES):
            views = Views(next(self.loader), inputs, self.policy.data_seed, self.policy.steps + number)
            for run, dictionary in dictionaries.items():
                view = views.of(run.arm, dictionary)
                dictionary.look(view.x, view.label, view.context)
        for dictionary in dictionaries.values():
            dictionary.finished()
        for run, dictionary in dictionaries.items():
            if run.arm.expectation is not None:
                self._settle(run.arm, dictionary, inputs)

    def _settle(self, arm: ArmConfig, dictionary: Dictionary, inputs: Inputs) -> None:
        """Maps of the past, and thresholds on documents that tables know nothing of."""
        if dictionary.past_map is not None:
            fit_past(dictionary, self.store, self.train, inputs)
        without = left_out(self.store, self.train)
        if without.any():
            others = self.expectations.of(arm, ~without)
            measure_thresholds(dictionary, self.store, self.train[without], inputs, others, self.policy.batch_size)

    def save_snapshots(self, trainees: list[Trainee], steps: int, checkpoint: Path) -> None:
        """Calibrate and save the snapshots that were taken after so many steps."""
        progress = Progress(steps - 1, self.policy.steps)
        folders = {trainee.run: trainee.snapshots[steps] for trainee in trainees if steps in trainee.snapshots}
        taken = {}
        for run in folders:
            file = snapshot_file(checkpoint, run.name, steps)
            taken[run] = load_snapshot(file, run.arm, self.store.width, self.store.positions, progress)
            taken[run].expectation = self.expectations.of(run.arm)
            taken[run].to(self.device)
            taken[run].encoder_dtype = DTYPES[precision(self.policy.encoder_dtype, self.device)]
        self.calibrate(taken)
        for run, dictionary in taken.items():
            self._fold(dictionary)
            for folder in folders[run]:
                description = self._origin() | {"step": steps}
                out = self.out / run.name / folder
                processes.once(partial(save_dictionary, dictionary, out, run.arm, self.store.positions, description))

    def _fold(self, dictionary: Dictionary) -> None:
        dictionary.cpu().fold(self.inputs.centre, self.inputs.scale)

    def _origin(self) -> dict[str, Any]:
        source = self.store.manifest.description
        return {"source": source.source, "policies": source.policies}

    def save(self, trainee: Trainee) -> TrainedArm:
        """Write what a finished training leaves, and read the dictionary back."""
        run, folder = trainee.run, self.out / trainee.run.name
        self._fold(trainee.dictionary)
        processes.once(partial(self._write, trainee, folder))
        summary = read_json(folder / "training.json", "the summary of a training run")
        return TrainedArm(folder, load_dictionary(folder, type(run.arm)), summary)

    def _write(self, trainee: Trainee, folder: Path) -> None:
        """`training.json`, the proof, comes last."""
        run, policy = trainee.run, self.policy
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
