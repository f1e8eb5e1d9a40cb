"""Dictionaries that other libraries saved, read here, against what those libraries compute: `make interop`.

    python -m tools.interop [--width 16] [--features 48] [--tokens 64] [--out FOLDER]

In the environment that `make peers` builds, SAELens, dictionary_learning and sparsify make a small random dictionary of every class that
they can save, save it, and encode and decode the same activations (`tools/interop_worker.py`). Each is read here; its codes and
reconstructions must agree to 1e-5 of the largest, and the same features must fire. Each is also saved as ours and read again, bit for bit.
The last line says how many formats agree, and the largest difference. `python -m tools.interop --fixtures` writes the small files that the
tests read where no other library is installed.

The way out is asked, too: every kind of arm that can be exported is trained for a few steps, written in each format that has a form for it,
and loaded and run by the library itself, with the lines of code that stand in its card; codes and reconstructions must be those of here.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file

import temporallens as tl
from temporallens.dictionaries.arms.pretrained import PretrainedDictionary
from temporallens.dictionaries.kinds import ARMS
from temporallens.dictionaries.saving import load_dictionary as load_ours, save_dictionary
from temporallens.interop.exporting import WRITERS, export
from temporallens.interop.loading import save_as_ours
from temporallens.interop.points import layer_of

ROOT = Path(__file__).parents[1]
PYTHON = ROOT / ".venv-peers" / "bin" / "python"
FIXTURES = ROOT / "tests" / "interop" / "fixtures"
FIXTURE_SIZES = {"width": 6, "features": 16, "tokens": 12}
TOLERANCE = 1e-5
"""Of the largest code or coordinate: what orders of sums differ by in float32."""


K = 5
OUT: dict[str, dict[str, Any]] = {
    "standard": {"sparsity": 0.02},
    "topk": {"k": K},
    "batchtopk": {"k": K},
    "jumprelu": {"l0": K},
    "matryoshka": {"k": K},
    "tsae": {"k": K},
    "budgeted": {"k": K},
    "positional": {"k": K},
    "positional_relu": {},
    "posthoc": {"k": K},
    "random_mask": {"k": K},
    "sliced": {"k": K},
}
"""The settings of what is exported, by kind; it has as many features as all cases."""
OTHERS = ("saelens-standard-b_dec-kept", "saelens-jumprelu", "saelens-topk-rescale_acts_by_decoder_norm", "sparsify-topk", "gemma_scope")
"""Cases that go out again in the files of every library that has a form for them."""
STEPS, SEQUENCES, LENGTH = 20, 40, 12
"""Of the training of what is exported: short, as nothing but its weights is needed."""


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
        shutil.rmtree(FIXTURES, ignore_errors=True)
    else:
        sizes = {name: getattr(options, name) for name in FIXTURE_SIZES}
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.out or Path(temporary)).resolve()
        make(folder, sizes)
        found = [compare(case) for case in sorted(folder.iterdir())]
        if not options.fixtures:
            found += round_trips(folder / OURS, sizes)
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
    _worker(folder, [f"--{name}={size}" for name, size in sizes.items()])


def _worker(folder: Path, options: list[str]) -> None:
    command = [str(PYTHON), "-W", "ignore", "-m", "tools.interop_worker", str(folder), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: the other libraries failed: {done.stderr.strip()}")


@torch.no_grad()
def compare(folder: Path) -> Found:
    """One dictionary, as read from its files and as saved and read again."""
    request, expected = json.loads((folder / "request.json").read_text("utf-8")), load_file(folder / "expected.safetensors")
    case, inner, folded = request.pop("case"), request.pop("folder", "."), request.pop("fold", False)
    pair = request.pop("pair", None)
    dictionary = tl.load_dictionary(folder / inner, **request)
    assert isinstance(dictionary, PretrainedDictionary)
    origin = dictionary.config.origin
    if dictionary.transcodes != (pair is not None) or (pair is not None and [origin.layer, layer_of(origin.target)] != pair):
        sys.exit(f"error: {case} is read as taking {origin.layer} and giving {origin.target}, and should be {pair}")
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


OURS = "written-here"
"""Folder of what is exported."""


def round_trips(folder: Path, sizes: dict[str, int]) -> list[Found]:
    """Every kind of arm in every format that has a form for it, as the format's own library reads it."""
    generator = np.random.default_rng(0)
    x = 1 + generator.normal(size=(SEQUENCES, LENGTH, sizes["width"])).astype(np.float32)
    store = tl.ActivationStore.from_arrays(x, folder / "store")
    rows = torch.from_numpy(x.reshape(-1, sizes["width"])[: sizes["tokens"]])
    cases: list[Path] = []
    for kind, settings in OUT.items():
        arm = ARMS[kind](features=sizes["features"], **settings)
        trained = tl.train(store, arm, STEPS, folder / "arms" / kind, batch_size=64).folder
        forms = [form for form in WRITERS if form != "sparsify" or kind == "topk"]
        cases += [write_out(trained, kind, form, rows, folder / "cases" / f"{form}-{kind}") for form in forms]
    for case in OTHERS:
        saved, made = folder / "arms" / case, folder.parent / case
        save_as_ours(tl.load_dictionary(made / json.loads((made / "request.json").read_text()).get("folder", ".")), saved)
        forms = [form for form in WRITERS if form != "sparsify" or "topk" in case]
        cases += [write_out(saved, case, form, rows, folder / "cases" / f"{form}-{case}") for form in forms]
    _worker(folder / "cases", ["--read"])
    return [compare_out(case) for case in cases]


@torch.no_grad()
def write_out(trained: Path, kind: str, form: str, x: Float[torch.Tensor, "N D"], case: Path) -> Path:
    """One exported dictionary, with what it computes here."""
    export(trained, form, case / "files")
    dictionary = load_ours(trained)
    codes = dictionary.ungated(x, torch.zeros(len(x), dtype=torch.int64)) if dictionary.masked else dictionary.encode(x)
    ours = {"x": x, "codes": codes, "reconstruction": dictionary.reconstruct(codes)}
    save_file({name: tensor.contiguous() for name, tensor in ours.items()}, case / "ours.safetensors")
    (case / "request.json").write_text(json.dumps({"form": form, "kind": kind}))
    return case


def compare_out(case: Path) -> Found:
    """What the library computes of the files that were written for it; its class is named as the format."""
    request = json.loads((case / "theirs.json").read_text())
    ours, theirs = (load_file(case / f"{who}.safetensors") for who in ("ours", "theirs"))
    otherwise = int(((ours["codes"] > 0) != (theirs["codes"] > 0)).sum())
    codes, reconstruction = (_share(theirs[name], ours[name]) for name in ("codes", "reconstruction"))
    return Found(f"to {request['form']} {request['class']}, {request['kind']}", codes, reconstruction, otherwise)


def _share(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


if __name__ == "__main__":
    main()
