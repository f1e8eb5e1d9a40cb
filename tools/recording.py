"""The first ten minutes, recorded: README's first commands in a fresh clone with an empty home, what they say, and what their reports show.

    python -m tools.recording

Writes docs/first-ten-minutes.md and its pictures from the commit that is checked out. The reports are opened in Chromium, which has to be
there; about ten minutes on two cores.
"""

import io
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from PIL import Image

from temporallens.errors import TemporalLensError
from temporallens.files import make_folder, write_text

ROOT = Path(__file__).parents[1]
PAGE, PICTURES = ROOT / "docs" / "first-ten-minutes.md", ROOT / "docs" / "images" / "recording"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTH, HEIGHT = 1280, 900
COLOURS = 128
OPENING = """# The first ten minutes

What a newcomer sees who gives README's first commands, on a machine that has Python, make and a package index: the terminal, with the time
that each command took on two cores, and the reports in a browser.
`python -m tools.recording` gave these commands in a fresh clone with an empty home and wrote this page; nothing is cut but colours.
Its machine has two cores without bfloat16 arithmetic."""


class View(NamedTuple):
    """A part of a report that is looked at."""

    name: str  # of its file
    says: str
    selector: str  # scrolled to the top of the window


class Scene(NamedTuple):
    """A command, and what is looked at when it is done."""

    command: str
    before: str  # a sentence
    report: str = ""
    views: tuple[View, ...] = ()


BIN = ".venv/bin/temporallens"
SCENES = (
    Scene(
        "make quickstart",
        "Everything is installed, fetched, harvested, trained, measured and drawn.",
        "runs/quickstart/report.html",
        (
            View("quickstart-first", "The report's first screen: what was found, layer by layer.", "body"),
            View("quickstart-browser", "The features, those first that depend most on position.", "#features"),
        ),
    ),
    Scene(f"{BIN} show runs/quickstart", "The same in the terminal."),
    Scene(f"{BIN} list arms", "What can be compared?"),
    Scene(f"{BIN} init minilm-l6 --layer 2 --out study.yaml", "A study of one's own: a layer that the quickstart does not look at."),
    Scene("cat study.yaml", "It is a file with a comment on everything that one would change."),
    Scene(f"{BIN} run study.yaml --dry-run", "What would that do, and how long would it take?"),
    Scene(
        f"{BIN} run study.yaml",
        "Do it.",
        "runs/minilm-l6-2/report.html",
        (View("own-first", "Its report.", "body"),),
    ),
)


class Said(NamedTuple):
    """What a command printed."""

    text: str
    seconds: float


def main() -> None:
    """Clone, play every scene, write the page. Raises TemporalLensError where a command fails or there is no browser."""
    if (browser := next(filter(None, map(shutil.which, BROWSERS)), None)) is None:
        raise TemporalLensError(f"there is no browser to look at reports with: install one of {', '.join(BROWSERS)}")
    make_folder(PICTURES)
    with TemporaryDirectory() as folder:
        clone, home = Path(folder) / "temporallens", Path(folder) / "home"
        home.mkdir()
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        parts, total = [], 0.0
        for scene in SCENES:
            said = play(scene.command, clone, home)
            total += said.seconds
            parts.append(told(scene, said))
            if scene.report:
                look(clone / scene.report, scene.views, browser)
    ending = f"In all {readable(total)}."
    write_text(PAGE, "\n\n".join([OPENING, *parts, ending]) + "\n")
    print(f"{PAGE}: {ending}")


def play(command: str, clone: Path, home: Path) -> Said:
    """Run a command in the clone as a terminal without colours would."""
    environment = {name: value for name, value in os.environ.items() if name not in {"VIRTUAL_ENV", "PYTHONPATH"}}
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), "NO_COLOR": "1", "COLUMNS": "120"}
    started = time.monotonic()
    done = subprocess.run(
        command.split(), cwd=clone, env=environment, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    seconds = time.monotonic() - started
    if done.returncode:
        raise TemporalLensError(f"{command} failed: {done.stdout}")
    print(f"{command}: {readable(seconds)}")
    text = done.stdout.replace(str(clone), ".").replace(str(home), "~")
    return Said("\n".join(line.rstrip() for line in text.splitlines()), seconds)


def told(scene: Scene, said: Said) -> str:
    lines = [scene.before, "", "```text", f"$ {scene.command}", *([said.text] if said.text else []), "```", "", readable(said.seconds)]
    for view in scene.views:
        lines += ["", view.says, "", f"![{view.says}](images/recording/{view.name}.png)"]
    return "\n".join(lines)


def readable(seconds: float) -> str:
    return f"{int(seconds // 60)} min {seconds % 60:.0f} s" if seconds >= 60 else f"{seconds:.1f} s"


def look(report: Path, views: Sequence[View], browser: str) -> None:
    """Take a picture of each view of a report, in few colours."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened: Any = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = opened.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.goto(report.as_uri())
        for view in views:
            page.locator(view.selector).first.evaluate("element => element.scrollIntoView({block: 'start', behavior: 'instant'})")
            page.wait_for_timeout(500)
            picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB").quantize(COLOURS)
            picture.save(PICTURES / f"{view.name}.png", optimize=True)
        opened.close()


if __name__ == "__main__":
    main()
