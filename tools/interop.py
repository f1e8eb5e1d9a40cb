"""Dictionaries that other libraries saved, read here, against what those libraries compute: `make interop`.

    python -m tools.interop [--width 16] [--features 48] [--tokens 64] [--out FOLDER]

In the environment that `make peers` builds, SAELens, dictionary_learning and sparsify make a small random dictionary of every class that
they can save, save it, and encode and decode the same activations (`tools/interop_worker.py`). Each is read here; its codes and
reconstructions must agree to 1e-5 of the largest, and the same features must fire. Each is also saved as ours and read again, bit for bit.
The last line says how many formats agree, and the largest difference. `python -m tools.interop --fixtures` writes the small files that the
tests read where no other library is installed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file

import temporallens as tl
from temporallens.dictionaries.arms.pretrained import PretrainedDictionary
from temporallens.dictionaries.saving import load_dictionary as load_ours, save_dictionary

ROOT = Path(__file__).parents[1]
PYTHON = ROOT / ".venv-peers" / "bin" / "python"
FIXTURES = ROOT / "tests" / "interop" / "fixtures"
FIXTURE_SIZES = {"width": 6, "features": 16, "tokens": 12}
TOLERANCE = 1e-5
"""Of the largest code or coordinate: what orders of sums differ by in float32."""


class Found(NamedTuple):
    """How one dictionary compares."""

    case: str
    codes: float  # largest difference, as a share of the largest code
    reconstruction: float
    otherwise: int  # codes in use on one side only


def main(arguments: Sequence[str] | None = None) -> float:
    """Compare all cases, print them, and return the largest difference. Ends this process with an error where one disagrees."""
    parser = argparse.ArgumentParser(prog="python -m tools.interop", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--features", type=int, default=48)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--out", type=Path, help="where the files of the libraries are kept; nowhere by default")
    parser.add_argument("--fixtures", action="store_true", help="write the files of the tests instead")
    options = parser.parse_args(arguments)
    if not PYTHON.exists():
        sys.exit("error: the other libraries are not installed here; run make peers")
    if options.fixtures:
        options.out, sizes = FIXTURES, FIXTURE_SIZES
    else:
        sizes = {name: getattr(options, name) for name in FIXTURE_SIZES}
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.out or Path(temporary)).resolve()
        make(folder, sizes)
        found = [compare(case) for case in sorted(folder.iterdir())]
    for one in found:
        print(f"{one.case}: codes {one.codes:.1e}, reconstruction {one.reconstruction:.1e}, {one.otherwise} fire otherwise")
    largest = max(max(one.codes, one.reconstruction) for one in found)
    wrong = [one.case for one in found if one.otherwise or max(one.codes, one.reconstruction) > TOLERANCE]
    if wrong:
        sys.exit(f"error: {len(wrong)} of {len(found)} disagree: {'; '.join(wrong)}")
    print(f"{len({one.case.partition(',')[0] for one in found})} formats, largest difference {largest:.1e}")
    return largest


def make(folder: Path, sizes: dict[str, int]) -> None:
    """Let the worker write all cases into `folder`; its words end this process where it fails."""
    numbers = [f"--{name}={size}" for name, size in sizes.items()]
    command = [str(PYTHON), "-W", "ignore", "-m", "tools.interop_worker", str(folder), *numbers]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: the other libraries failed: {done.stderr.strip()}")


@torch.no_grad()
def compare(folder: Path) -> Found:
    """One dictionary, as read from its files and as saved and read again."""
    request, expected = json.loads((folder / "request.json").read_text("utf-8")), load_file(folder / "expected.safetensors")
    case, inner, folded = request.pop("case"), request.pop("folder", "."), request.pop("fold", False)
    dictionary = tl.load_dictionary(folder / inner, **request)
    assert isinstance(dictionary, PretrainedDictionary)
    if folded:
        dictionary.fold()
    x, codes = expected["x"], expected["codes"]
    ours = dictionary.encode(x)
    reconstruction = dictionary.decode(ours)
    with tempfile.TemporaryDirectory() as saved:
        save_dictionary(dictionary, saved, dictionary.config, 64)
        again = load_ours(saved)
        if not torch.equal(again.encode(x), ours) or not torch.equal(again.decode(ours), reconstruction):
            sys.exit(f"error: {case} is another dictionary once it was saved and read again")
    otherwise = int(((ours > 0) != (codes > 0)).sum())
    return Found(case, _share(ours, codes), _share(reconstruction, expected["reconstruction"]), otherwise)


def _share(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


if __name__ == "__main__":
    main()
