"""Dictionaries kept along the way: the one before its mask hardens, and as many as the policy asks for at equal distances.

A snapshot is taken as the weights stand, beside the checkpoint and under its name. When training is over each is calibrated on the
batches on which the final dictionary is, folded into raw units, and saved as an ordinary dictionary: `soft/`, and
`snapshots/step-000150/`. They are what retention (`docs/method.md`, "Metrics") and the evolution of clusters are measured on.
"""

from pathlib import Path

import torch

from temporallens.dictionaries.base import ArmConfig, Dictionary
from temporallens.dictionaries.steps import Progress
from temporallens.errors import TemporalLensError
from temporallens.files import read_tensors, write_tensors
from temporallens.training.policy import TrainingPolicy

SOFT, ALONG = "soft", "snapshots"
"""Folders of a trained arm: the dictionary before hardening, and those of certain steps."""


def snapshot_steps(dictionary: Dictionary, policy: TrainingPolicy) -> dict[int, list[str]]:
    """After how many steps a snapshot is taken, and the folders that it is saved as."""
    folders: dict[int, list[str]] = {}
    for number in range(1, policy.snapshots + 1):
        steps = round(policy.steps * number / (policy.snapshots + 1))
        if steps:
            folders.setdefault(steps, []).append(f"{ALONG}/step-{steps:06d}")
    hardening = dictionary.hardens_at(policy.steps)
    if hardening:
        folders.setdefault(hardening, []).append(SOFT)
    return {steps: sorted(set(folders)) for steps, folders in sorted(folders.items())}


def snapshot_file(checkpoint: Path, run: str, steps: int) -> Path:
    """Where a snapshot waits until training is over."""
    return checkpoint.with_name(f"{checkpoint.stem}-{run}-{steps}.safetensors")


def save_snapshot(dictionary: Dictionary, path: Path) -> None:
    """Keep the weights as they are."""
    write_tensors(path, dictionary.state_dict())


def load_snapshot(path: Path, arm: ArmConfig, width: int, positions: int, progress: Progress) -> Dictionary:
    """The dictionary that was kept after the step `progress`. Raises TemporalLensError where the file is missing or damaged."""
    tensors, _ = read_tensors(path, "a dictionary kept during training")
    dictionary = arm.make(width, positions, torch.Generator())
    try:
        dictionary.load_state_dict(tensors)
    except RuntimeError as error:
        raise TemporalLensError(f"{path} is not the dictionary that was kept during training; remove it to train again") from error
    dictionary.advance(progress)
    return dictionary


def snapshots_of(folder: Path) -> dict[int, Path]:
    """The snapshots along the way of a trained arm's folder, by step; `soft/` is not one of them."""
    found = (folder / ALONG).glob("step-*") if (folder / ALONG).is_dir() else ()
    return {int(path.name.removeprefix("step-")): path for path in sorted(found)}


def soft_of(folder: Path) -> Path | None:
    """The dictionary before hardening of a trained arm's folder; None where nothing hardened."""
    return folder / SOFT if (folder / SOFT).is_dir() else None
