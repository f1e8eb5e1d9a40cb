"""The public face: importing the package or asking for help costs nothing, and every public name is there."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

import temporallens

HEAVY = ("torch", "transformers", "matplotlib", "scipy", "sklearn", "numpy", "pydantic")


def modules_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nsys.stderr.write(' '.join(sys.modules))"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(finished.stderr.split())


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert modules_after("import temporallens").isdisjoint(HEAVY)


def test_help_imports_nothing_heavy() -> None:
    loaded = modules_after("from typer.testing import CliRunner\nfrom temporallens.cli import app\nCliRunner().invoke(app, ['--help'])")
    assert "temporallens.cli" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_help_answers_within_half_a_second() -> None:
    def seconds() -> float:
        """Of the processor, which other processes on the machine do not add to."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "temporallens", "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.5


@pytest.mark.parametrize("name", temporallens.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(temporallens, name) is getattr(temporallens, name)
    assert name in dir(temporallens)


def test_the_five_lines_of_the_readme_work_on_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np
    import torch

    import temporallens as tl

    monkeypatch.chdir(tmp_path)
    x, positions = np.random.default_rng(0).normal(size=(40, 12, 8)).astype(np.float32), torch.arange(12)
    store = tl.ActivationStore.from_arrays(x, out="store")
    run = tl.train(store, arm=tl.Positional(features=32, k=4, groups=3), steps=10, batch_size=64, out="run")
    sae = tl.load_dictionary("run")
    z = sae.encode(torch.from_numpy(x[0]), positions)
    assert z.shape == (12, 32)
    assert torch.equal(z, run.dictionary.encode(torch.from_numpy(x[0]), positions))
    assert torch.equal(sae.encode(torch.from_numpy(x))[0], z)  # [B, S, D] without positions are 0 to S - 1


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'harvst'"):
        _ = temporallens.harvst


def test_the_version_is_the_packages() -> None:
    from importlib.metadata import version

    assert temporallens.__version__ == version("temporallens")
