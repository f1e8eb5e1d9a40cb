"""Our sparse probing against that of the unmodified sae_bench 0.6.0, on the same texts, model and dictionary: `make parity`.

    python -m tools.parity [--sets NAME ...] [--train-size N] [--test-size N] [--layer N] [--out FOLDER]

Makes a position-aware dictionary in seconds, probes it here, and lets the package evaluate it, wrapped by `temporallens.interop.saebench`,
in the environment that `make parity` builds. Every accuracy of the two results is compared, by class, by set and on average, and our
JSON is validated by the package's own model. The package gets the same local model twice: as transformers runs it, which is what we
read, and as TransformerLens's HookedTransformer, whose own arithmetic rounds activations differently in the last places.
The last line gives the largest difference between results on the same activations.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

import temporallens as tl
from temporallens.activations.language import shipped
from temporallens.evaluation.probing.saebench import DividedSet, SparseProbingPolicy, divide
from temporallens.evaluation.texts.sets import open_sets
from temporallens.interop.saebench import probe_folder

ROOT = Path(__file__).parents[1]
PYTHON = ROOT / ".venv-parity" / "bin" / "python"
MODEL = "smollm2-135m"
SETS = ["sst2", "ag_news", "language"]
COMPARED = ("eval_result_metrics", "eval_result_details", "eval_result_unstructured")


class Case(NamedTuple):
    """One evaluation by the package."""

    padding: Literal["right", "left"]
    dtype: Literal["float32", "bfloat16"]
    stream: Literal["transformers", "transformer_lens"]  # who computes the activations

    @property
    def title(self) -> str:
        return f"{self.dtype}, padded on the {self.padding}, activations by {self.stream}"


CASES = [
    Case("right", "float32", "transformers"),
    Case("left", "float32", "transformers"),
    Case("right", "bfloat16", "transformers"),
    Case("right", "float32", "transformer_lens"),
    Case("left", "float32", "transformer_lens"),
]


class Comparison(NamedTuple):
    """Two results, number by number."""

    accuracies: int
    differing: int
    largest: float


def main(arguments: Sequence[str] | None = None) -> float:
    """Compare all cases, print what was found, and return the largest difference on the same activations."""
    parser = argparse.ArgumentParser(prog="python -m tools.parity", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--sets", nargs="+", default=SETS, help="labelled sets: names of the embedded suite, tables or folders")
    parser.add_argument("--train-size", type=int, default=82, help="training texts of a task")
    parser.add_argument("--test-size", type=int, default=46, help="test texts of a task")
    parser.add_argument("--layer", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/parity"), help="where everything is written")
    options = parser.parse_args(arguments)
    if not PYTHON.exists():
        sys.exit("error: sae_bench is not installed here; run make parity")
    options.out = options.out.resolve()
    dictionary = made_dictionary(options.layer, options.out / f"dictionary-{options.layer}")
    sizes = {"probe_train_set_size": options.train_size, "probe_test_set_size": options.test_size}
    policy = SparseProbingPolicy(**sizes, sae_batch_size=25, llm_batch_size=16)
    sets = [divide(one, policy) for one in open_sets(options.sets)]
    largest = {"transformers": 0.0, "transformer_lens": 0.0}
    for case in CASES:
        found = compare(case, dictionary, sets, policy.model_copy(update={"padding": case.padding, "llm_dtype": case.dtype}), options)
        largest[case.stream] = max(largest[case.stream], found.largest)
        print(f"{case.title}: {found.accuracies} accuracies, {found.differing} differ, by {found.largest!r} at most", flush=True)
    print(f"on activations of TransformerLens's own arithmetic: {largest['transformer_lens']!r} at most")
    print(f"largest difference: {largest['transformers']!r}")
    return largest["transformers"]


def made_dictionary(layer: int, out: Path) -> Path:
    """A position-aware dictionary of the shipped model's layer, trained for seconds; that of an earlier call, where there is one."""
    if not (out / "run" / "cfg.json").exists():
        tl.harvest(MODEL, layer, out=out / "store", max_tokens=16_384, dtype="float32")
        tl.train(out / "store", arm=tl.Positional(features=512, k=16), steps=80, batch_size=512, out=out / "run")
    return out / "run"


def compare(case: Case, dictionary: Path, sets: list[DividedSet], policy: SparseProbingPolicy, options: argparse.Namespace) -> Comparison:
    """Evaluate once here and once by the package."""
    name = "-".join(case)
    ours = probe_folder(dictionary, sets, policy, options.out)
    result = json.loads(ours.read_text("utf-8"))
    job = {
        "threads": torch.get_num_threads(),
        "config": result["eval_config"],
        "sets": {one.name: {"train": one.train, "test": one.test} for one in sets},
        "model_folder": str(shipped.model_folder(MODEL)),
        "layer": options.layer,
        "dictionary": str(dictionary),
        "release": name,
        "stream": case.stream,
        "padding": case.padding,
        "out": str(options.out / name),
    }
    ask({"check": str(ours)}, options.out / name)
    ask(job, options.out / name)
    theirs = json.loads((options.out / name / f"{name}_custom_sae_eval_results.json").read_text("utf-8"))
    return difference(result, theirs)


def ask(job: dict[str, Any], folder: Path) -> None:
    """Let the worker do a job; its words go into a file, and end this process where it fails."""
    folder.mkdir(parents=True, exist_ok=True)
    path, log = folder / "job.json", folder / "worker.log"
    path.write_text(json.dumps(job), "utf-8")
    with log.open("w", encoding="utf-8") as words:
        environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
        command = [str(PYTHON), "-m", "tools.parity_worker", str(path.resolve())]
        if subprocess.run(command, cwd=ROOT, env=environment, stdout=words, stderr=subprocess.STDOUT, check=False).returncode:
            sys.exit(f"error: sae_bench failed: {log.read_text('utf-8').strip().splitlines()[-1]} (all that it said: {log})")


def difference(ours: dict[str, Any], theirs: dict[str, Any]) -> Comparison:
    """Every accuracy of two results. Ends this process where one has a number that the other has not."""
    if list(ours) != list(theirs):
        sys.exit(f"error: our keys are {list(ours)}, those of sae_bench {list(theirs)}")
    mine, other = (dict(numbers({key: result[key] for key in COMPARED})) for result in (ours, theirs))
    if list(mine) != list(other) or any((mine[path] is None) != (other[path] is None) for path in mine):
        paths = [path for path in {**mine, **other} if (mine.get(path) is None) != (other.get(path) is None)]
        sys.exit(f"error: one of the results lacks, or has in another order, what the other has: {paths[:3]}")
    pairs = zip(mine.values(), other.values(), strict=True)
    gaps = [abs(one - two) for one, two in pairs if one is not None and two is not None]
    return Comparison(len(gaps), sum(gap > 0 for gap in gaps), max(gaps))


def numbers(value: Any, path: str = "") -> Iterator[tuple[str, float | None]]:
    """The numbers of a JSON value, with their paths."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from numbers(part, f"{path}/{key}")
    elif isinstance(value, list):
        for number, part in enumerate(value):
            yield from numbers(part, f"{path}/{number}")
    elif value is None or isinstance(value, float):
        yield path, value


if __name__ == "__main__":
    main()
