"""The house stands: every floor imports only from the floors below it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "temporallens"
FLOORS = [
    {"errors"},
    {"defaults", "files", "layout", "memory", "precision", "progress", "serial", "settings", "stopping"},
    {"cache"},
    {"activations"},
    {"dictionaries"},
    {"training"},
    {"evaluation"},
    {"figures"},
    {"report"},
    {"study"},
    {"cli"},
    {"__main__"},
]
HEIGHTS = {name: height for height, floor in enumerate(FLOORS) for name in floor}
INTEROP = {"interop"} | set().union(*FLOORS[: HEIGHTS["dictionaries"] + 1], FLOORS[HEIGHTS["evaluation"]])
MODULES = sorted(SOURCE.rglob("*.py"))


def floor_of(path: Path) -> str:
    """First part of a module's name inside the package: `activations`, `cli`, `__init__`."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def allowed_to(own: str) -> set[str]:
    """Floors that a floor may import from; of all of them only the command line uses `interop`."""
    if own == "interop":
        return INTEROP
    return {name for name, height in HEIGHTS.items() if height < HEIGHTS[own]} | {own} | ({"interop"} if own == "cli" else set())


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Floors of our own package that a module imports, anywhere in it, with the line."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            names = [f"{node.module}.{alias.name}" if node.module == "temporallens" else str(node.module) for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("temporallens."):
                yield name.split(".")[1], node.lineno


@pytest.mark.parametrize("path", [path for path in MODULES if floor_of(path) != "__init__"], ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_floor_imports_only_from_floors_below(path: Path) -> None:
    own = floor_of(path)
    for floor, line in imports(path):
        if floor == "__version__":
            continue
        allowed = allowed_to(own)
        assert floor in allowed, f"{path.relative_to(SOURCE)}:{line} ({own}) imports from {floor}"


def test_every_module_stands_on_a_known_floor() -> None:
    assert {floor_of(path) for path in MODULES} <= {*HEIGHTS, "__init__", "interop"}


def test_the_check_sees_imports_wherever_they_are(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text(
        "import temporallens.cli\ndef f():\n    from temporallens.figures.save import save\n    from temporallens import study\n"
    )
    assert list(imports(module)) == [("cli", 1), ("figures", 3), ("study", 4)]
