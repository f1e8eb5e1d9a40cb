"""Checkpoints: everything that a training run is, in one safetensors file, so that going on equals never having stopped."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from temporallens.activations.store import ActivationStore
from temporallens.dictionaries.arms import Arm
from temporallens.files import canonical_json, fingerprint, read_tensors, write_tensors
from temporallens.training.policy import TrainingPolicy

FORMAT = "temporallens.checkpoint/1"


def checkpoint_file(folder: Path, settings: Any) -> Path:
    """Where a run with these settings keeps its checkpoint; other settings have another file, and are never continued."""
    return folder / f"checkpoint-{fingerprint(settings)[:16]}.safetensors"


def training_settings(store: ActivationStore, runs: Sequence[tuple[str, Arm, int]], policy: TrainingPolicy) -> Any:
    """Everything that shapes a training run of several arms (name, arm and seed of each), as plain JSON."""
    return [
        store.manifest.model_dump(mode="json"),
        policy.model_dump(mode="json"),
        [[name, arm.model_dump(mode="json"), seed] for name, arm, seed in runs],
    ]


def other_checkpoints(folder: Path, kept: Path) -> list[Path]:
    """Checkpoints in `folder` of trainings with other settings than that of `kept`: nothing will go on from them."""
    return sorted(path for path in folder.glob("checkpoint-*.safetensors") if path != kept)


def save_checkpoint(path: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """`state` is small JSON (step, cursor, seconds); tensors are named `run/part/tensor`."""
    write_tensors(path, tensors, {"format": FORMAT, "state": canonical_json(state)})


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Tensors and state of a checkpoint. Raises TemporalLensError when the file is damaged."""
    import json

    tensors, metadata = read_tensors(path, "a checkpoint (remove it to start the training again)")
    return tensors, json.loads(metadata["state"])
