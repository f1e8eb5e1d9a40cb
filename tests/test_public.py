"""The public face: importing the package or asking for help costs nothing, and every public name is there."""

import resource
import subprocess
import sys

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


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'harvst'"):
        _ = temporallens.harvst


def test_the_version_is_the_packages() -> None:
    from importlib.metadata import version

    assert temporallens.__version__ == version("temporallens")
