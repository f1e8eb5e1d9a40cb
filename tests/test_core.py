"""The core stands alone: its modules need nothing of what probes, draws, writes reports or reads a command line."""

import json
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src"
CORE = ("activations", "dictionaries", "training")
OUTSIDE = {"sklearn", "matplotlib", "jinja2", "typer"}
IMPORTING = """
import json, sys
from importlib import import_module
for name in json.loads(sys.argv[1]):
    import_module(name)
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def modules_of(floor: str) -> list[str]:
    paths = sorted((SOURCE / "temporallens" / floor).rglob("*.py"))
    return [".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__") for path in paths]


def packages_after(names: list[str]) -> set[str]:
    """All packages that a fresh process holds when it has imported these modules."""
    finished = subprocess.run([sys.executable, "-c", IMPORTING, json.dumps(names)], capture_output=True, text=True, check=True)
    return set(json.loads(finished.stdout))


def test_the_core_imports_nothing_that_only_other_floors_need() -> None:
    names = [name for floor in CORE for name in modules_of(floor)]
    assert {"temporallens.activations.store", "temporallens.dictionaries.base", "temporallens.training.trainer"} <= set(names)
    loaded = packages_after(names)
    assert {"torch", "temporallens"} <= loaded
    assert loaded.isdisjoint(OUTSIDE), f"imported by {' or '.join(CORE)}: {sorted(loaded & OUTSIDE)}"


def test_the_check_sees_what_is_imported() -> None:
    assert {"jinja2", "typer"} <= packages_after(["jinja2", "temporallens.cli"])
