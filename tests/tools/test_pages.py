"""The site: it builds with warnings as errors, links lead somewhere, nothing is loaded from elsewhere, and every public name is in it."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from tools.pages import PAGES, on_page_markdown

import temporallens
from temporallens.dictionaries.kinds import ARMS

ROOT = Path(__file__).parents[2]
LOADED = {"img": "src", "script": "src", "source": "src", "iframe": "src"}
WORD = re.compile(r"url\(\s*['\"]?(https?:)?//")


class Page(HTMLParser):
    """What a page links to, loads, and can be linked at."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.places: set[str] = set()
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attributes}
        self.places |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        elif tag in LOADED and LOADED[tag] in found:
            self.loads.append(found[LOADED[tag]])
        elif tag == "link" and found.get("rel") not in {"canonical", "next", "prev"}:
            self.loads.append(found["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    build(ROOT, out)
    return out


def build(repository: Path, out: Path, expected: int = 0) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(repository), str(ROOT / "src")])}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    finished = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == expected, finished.stdout + finished.stderr
    return finished.stdout + finished.stderr


def broken(site: Path) -> Iterator[str]:
    pages = {path: Page(path) for path in site.rglob("*.html")}
    for path, page in pages.items():
        for link in [*page.links, *page.loads]:
            parts = urlsplit(link)
            target = path if not parts.path else (path.parent / unquote(parts.path)).resolve()
            if parts.scheme or parts.netloc or path.name == "404.html":
                continue
            if not target.exists() or (parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].places):
                yield f"{path.relative_to(site)}: {link}"


def test_every_page_has_its_place_in_the_menu() -> None:
    menu = re.findall(r"^  - [^:]+: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE)
    made = {*PAGES.values(), "python.md", "arms.md"}
    assert sorted(menu) == sorted({path.name for path in (ROOT / "docs").glob("*.md")} | made)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_link_of_the_site_leads_somewhere(site: Path) -> None:
    assert {path.name for path in site.glob("*.html")} >= {
        "index.html",
        "method.html",
        "python.html",
        "arms.html",
        "contributing.html",
        "changelog.html",
    }
    assert list(broken(site)) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    loads = {load for path in site.rglob("*.html") for load in Page(path).loads}
    assert loads and not [load for load in loads if urlsplit(load).netloc]
    assert not [path for path in site.rglob("*.css") if WORD.search(path.read_text("utf-8"))]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_public_name_is_in_the_reference_and_can_be_searched(site: Path) -> None:
    places = Page(site / "python.html").places | Page(site / "arms.html").places
    names = {place.rpartition(".")[2] for place in places}
    assert {name for name in temporallens.__all__ if name[0] != "_"} - names == {"interop"}  # a package of its own
    assert {f"{arm.__module__}.{arm.__name__}" for arm in ARMS.values()} <= places
    assert "temporallens.dictionaries.arms.positional.Positional.groups" in places
    assert "ActivationStore" in (site / "search" / "search_index.json").read_text("utf-8")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_link_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    for name in ("docs", "tools"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("mkdocs.yml", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "src", "LICENSE"):
        (tmp_path / name).symlink_to(ROOT / name)
    with (tmp_path / "docs" / "method.md").open("a") as page:
        page.write("\n[nothing](models.md#no-such-place) and [none](none.md)\n")
    said = build(tmp_path, tmp_path / "site", expected=1)
    assert "no-such-place" in said and "none.md" in said


def test_links_follow_the_page_to_its_place_in_the_site() -> None:
    config = MkDocsConfig()
    names = ("index.md", "method.md", "contributing.md", "images/scan.png")
    files = Files([File(name, None, "site", use_directory_urls=False) for name in names])

    def at(page: str, text: str) -> str:
        class Here:
            file = files.get_file_from_path(page)

        return on_page_markdown(text, Here, config, files)

    assert at("index.md", "[a](docs/method.md#b) ![c](docs/images/scan.png)") == "[a](method.md#b) ![c](images/scan.png)"
    assert at("index.md", "[`store`](src/temporallens/activations/store.py), MIT") == "`store`, MIT"
    assert at("method.md", "[b](../CONTRIBUTING.md#an-arm) [c](#here) [d](https://example.org)") == (
        "[b](contributing.md#an-arm) [c](#here) [d](https://example.org)"
    )
    assert at("method.md", "[b](nothing.md)") == "[b](nothing.md)"
