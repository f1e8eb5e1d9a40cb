"""What a newcomer reads first is true: every file, command and name that these pages cite exists."""

import re
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

import temporallens
from temporallens.cli import app

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "temporallens"
PAGES = ("CONTRIBUTING.md", "README.md", "docs/glossary.md")
OTHERS = sorted({f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} - {*PAGES})
"""These hold formulas and keys of files too, which look like names of the code."""
FENCED = re.compile(r"^```\w*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
NAME = re.compile(r"\b(?:[A-Z]\w*[a-z]\w*[A-Z]\w*|[A-Z][A-Z_]{3,}|[A-Z][a-z]{4,}|[a-z]{2,}(?:_[a-z0-9]+)+)\b")
"""What can only be a name of the code: CamelCase, CAPITALS, Capitalised or snake_case."""
ENDINGS = (".md", ".py", ".yaml", ".toml", ".yml", ".cff")
MADE = ("runs", "measures")
"""Folders that commands make."""


def cited(page: str) -> Iterator[str]:
    """Everything between backticks, and every line of a block of commands without its comment."""
    for block in FENCED.findall(page):
        yield from (line.split("  #")[0].strip() for line in block.splitlines())
    yield from re.findall(r"`([^`\n]+)`", FENCED.sub("", page))


def missing(page: str) -> list[str]:
    """What a page cites and nobody has."""
    return [text for text in cited(page) if not _exists(text)]


def broken_links(page: str, folder: Path = ROOT) -> list[str]:
    """Links that lead nowhere from a page in `folder`."""
    return [link for link in LINK.findall(page) if "://" not in link and not _link_leads_somewhere(link, page, folder)]


def _link_leads_somewhere(link: str, page: str, folder: Path) -> bool:
    name, _, anchor = link.partition("#")
    path = folder / name
    if name and not path.exists():
        return False
    return not anchor or anchor in _anchors(path.read_text("utf-8") if name else page)


def _anchors(page: str) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _exists(text: str) -> bool:
    word, _, rest = text.partition(" ")
    if word == "make" and rest:
        return rest.split()[0] in _targets()
    if text.startswith("python -m "):
        module = text.split()[2]
        return find_spec(module) is not None
    if word == "temporallens" and rest:
        return _commands_of(rest) <= {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    if not rest and ("/" in text or text.endswith(ENDINGS)):
        return _is_a_path(text)
    code = re.sub(r'"[^"]*"', "", text)
    return all(map(_is_public, re.findall(r"\btl\.([\w.]+)", code))) and set(NAME.findall(code)) <= _names()


def _commands_of(rest: str) -> set[str]:
    """One command, or several between bars."""
    found = re.match(r"[a-z]+(?: \| [a-z]+)*", rest)
    return set(found.group().split(" | ")) if found else set()


def _is_public(dotted: str) -> bool:
    value = temporallens
    for part in dotted.split("."):
        value = getattr(value, part, None)
    return value is not None


def _is_a_path(text: str) -> bool:
    """A path from the root, or from the package; what stands in angle brackets is any; names of the hub begin nowhere here."""
    if text.split("/", maxsplit=1)[0] in MADE:
        return True
    pattern = re.sub(r"<\w+>", "*", text).rstrip("/")
    if text.endswith("/") and "/" not in pattern:
        return any(path.is_dir() for root in (ROOT, SOURCE) for path in (root / pattern, *root.glob(f"*/{pattern}")))
    roots = [root for root in (ROOT, SOURCE) if (root / pattern.split("/")[0]).exists()]
    if not roots:
        return "/" in text and not text.endswith(ENDINGS)
    return any(next(root.glob(pattern), None) is not None for root in roots)


@cache
def _targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))


@cache
def _names() -> set[str]:
    """Every name that our code defines or imports: functions, classes, constants, fields, arguments, and what stands in quotation marks."""
    paths = [path for folder in (SOURCE, ROOT / "tools", ROOT / "benchmarks") for path in folder.rglob("*.py")]
    defining = re.compile(r"\b(?:def|class) (\w+)|(\w+)(?: = |=|: )|\"(\w+)\"|import (.+)|^    (\w+),$", re.MULTILINE)
    found = [part for path in paths for parts in defining.findall(path.read_text("utf-8")) for part in parts]
    return {name for part in found for name in re.findall(r"\w+", part)}


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_cites_exists(page: str) -> None:
    assert not missing((ROOT / page).read_text("utf-8"))


@pytest.mark.parametrize("page", OTHERS)
def test_modules_and_commands_of_the_other_pages_exist(page: str) -> None:
    found = missing((ROOT / page).read_text("utf-8"))
    assert not [text for text in found if text.startswith(("make ", "python ", "temporallens ")) or text.endswith(".py")]


@pytest.mark.parametrize("page", [*PAGES, *OTHERS])
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    assert not broken_links(path.read_text("utf-8"), path.parent)


@pytest.mark.parametrize(
    "text",
    [
        "make tests",
        "python -m benchmarks.chaos",
        "python -m tools.nothing RUN",
        "temporallens harvst STUDY.yaml",
        "temporallens harvest | trian",
        "src/temporallens/activations/models.py",
        "activations/models.py",
        "tests/test_store.py",
        "src/temporallens/dictionaries/arm/<arm>.py",
        "saving_py.py",
        "rooms/",
        "tl.ActivationsStore",
        "LanguageModels",
        "CLOCKWORK",
        "Sections",
        "harden_when",
        "SECTION = Sektion(...)",
        'sae = tl.load_dictionaries("run")',
    ],
)
def test_what_does_not_exist_is_found_out(text: str) -> None:
    assert missing(f"Look at `{text}`.") == [text]


def test_links_and_blocks_of_commands_are_looked_at_too() -> None:
    links = "[one](docs/method.md), [two](docs/none.md), [three](docs/method.md#none), [four](#a-page)"
    page = f"# A page\n{links}\n\n```\nmake test  # why\nmake nothing  # why\n```\n"
    assert broken_links(page) == ["docs/none.md", "docs/method.md#none"]
    assert missing(page) == ["make nothing"]
