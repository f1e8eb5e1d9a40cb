"""The house stands: every floor imports only from the floors below it, and nothing on a floor imports in a circle."""

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "temporallens"
FLOORS = [
    {"errors"},
    {"defaults", "files", "heartbeats", "layout", "memory", "precision", "serial", "settings", "wording"},
    {"processes"},
    {"progress", "stopping"},
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
    """Floors that a floor may import from; of all of them only a study and the command line use `interop`."""
    if own == "interop":
        return INTEROP
    return {name for name, height in HEIGHTS.items() if height < HEIGHTS[own]} | {own} | ({"interop"} if own in {"study", "cli"} else set())


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """What a module imports of our own package, anywhere in it, with the line: `temporallens.files.sha256`, `temporallens.cli`."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from ((name, node.lineno) for name in names if name.startswith("temporallens."))


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Floors of our own package that a module imports, with the line."""
    return ((name.split(".")[1], line) for name, line in imported(path))


def module_name(path: Path, source: Path) -> str:
    return ".".join(("temporallens", *path.relative_to(source).with_suffix("").parts)).removesuffix(".__init__")


def module_graph(source: Path) -> dict[str, set[str]]:
    """The modules that each module of the package in the folder `source` imports. The package's own `__init__` stands apart: it
    imports nothing but on demand, and for type checkers."""
    paths = {module_name(path, source): path for path in source.rglob("*.py") if path != source / "__init__.py"}
    found = {name: [line[0] for line in imported(path)] for name, path in paths.items()}
    modules = {name: {each if each in paths else each.rpartition(".")[0] for each in lines} for name, lines in found.items()}
    return {name: (wanted & paths.keys()) - {name} for name, wanted in modules.items()}


def room_graph(modules: Mapping[str, Iterable[str]], source: Path) -> dict[str, set[str]]:
    """The same for rooms, which are folders inside a floor; a module that stands on the floor itself is a room of its own."""

    def room(name: str) -> str:
        floor, _, rest = name.removeprefix("temporallens.").partition(".")
        inner = rest.partition(".")[0]
        return f"{floor}.{inner}" if (source / floor / inner).is_dir() else name.removeprefix("temporallens.")

    graph: dict[str, set[str]] = {}
    for name, wanted in modules.items():
        graph.setdefault(room(name), set()).update({room(module) for module in wanted} - {room(name)})
    return graph


def circle(graph: Mapping[str, Iterable[str]]) -> list[str]:
    """A circle of the graph, from a name back to the same; none is an empty list."""
    done: set[str] = set()

    def walk(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        found = next((found for wanted in sorted(graph.get(name, ())) if (found := walk(wanted, [*way, name]))), [])
        done.add(name)
        return found

    return next((found for name in sorted(graph) if (found := walk(name, []))), [])


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


def test_no_modules_and_no_rooms_import_in_a_circle() -> None:
    modules = module_graph(SOURCE)
    for graph in (modules, room_graph(modules, SOURCE)):
        found = circle(graph)
        assert not found, f"imports run in a circle: {' imports '.join(found)}"


def test_the_check_sees_a_circle_of_modules(tmp_path: Path) -> None:
    (tmp_path / "floor").mkdir()
    (tmp_path / "floor" / "__init__.py").touch()
    (tmp_path / "floor" / "low.py").write_text("def f():\n    from temporallens.floor import high\n")
    (tmp_path / "floor" / "high.py").write_text("from temporallens.floor.low import f\n")
    high, low = "temporallens.floor.high", "temporallens.floor.low"
    assert circle(module_graph(tmp_path)) == [high, low, high]


def test_the_check_sees_a_circle_of_rooms_whose_modules_have_none(tmp_path: Path) -> None:
    for room in ("a", "b"):
        (tmp_path / "floor" / room).mkdir(parents=True)
    (tmp_path / "floor" / "a" / "top.py").write_text("import temporallens.floor.b.middle\n")
    (tmp_path / "floor" / "b" / "middle.py").write_text("from temporallens.floor.a.bottom import NAME\n")
    (tmp_path / "floor" / "a" / "bottom.py").write_text("NAME = 1\n")
    modules = module_graph(tmp_path)
    assert not circle(modules)
    assert circle(room_graph(modules, tmp_path)) == ["floor.a", "floor.b", "floor.a"]
