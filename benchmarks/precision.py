"""Does nominating codes with a bfloat16 product change what is learned? `python -m benchmarks.precision RUN`

Trains the BatchTopK and positional arms of a finished study again, on its own stores and settings, once with each product, and
prints held-out FVE and L0 side by side.
"""

import argparse
import tempfile
from pathlib import Path

import torch

from temporallens.activations.store import ActivationStore
from temporallens.dictionaries.kinds import Arm
from temporallens.evaluation.reconstruction import evaluate_reconstruction
from temporallens.layout import RunFolder
from temporallens.study.config import Study
from temporallens.study.reading import read_study
from temporallens.training.trainee import ArmRun
from temporallens.training.trainer import train_arms

DTYPES = ("float32", "bfloat16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a finished study, such as runs/quickstart")
    folder = parser.parse_args().run
    study = read_study(RunFolder(folder).study).study
    if study.threads:
        torch.set_num_threads(study.threads)
    print(f"{'activations':<18}{'arm':<14}{'FVE float32':>12}{'FVE bfloat16':>14}{'difference':>12}{'L0':>16}")
    for name in study.activations:
        store = ActivationStore(RunFolder(folder).store(name))
        for arm_name, arm in study.arms.items():
            if arm.kind != "standard":
                results = [measure(store, arm, study, dtype) for dtype in DTYPES]
                (fve, l0), (fve_low, l0_low) = results
                print(f"{name:<18}{arm_name:<14}{fve:>12.5f}{fve_low:>14.5f}{fve_low - fve:>+12.5f}{l0:>8.2f}{l0_low:>8.2f}", flush=True)


def measure(store: ActivationStore, arm: Arm, study: Study, dtype: str) -> tuple[float, float]:
    policy = study.training.model_copy(update={"encoder_dtype": dtype})
    with tempfile.TemporaryDirectory() as out:
        trained = train_arms(store, [ArmRun("arm", arm, study.seeds[0])], policy, out)["arm"]
    held_out = store.split(policy.held_out, policy.data_seed).held_out
    found = evaluate_reconstruction(trained.dictionary, store, held_out, trained.summary["scale"])
    return found.fve, found.l0


if __name__ == "__main__":
    main()
