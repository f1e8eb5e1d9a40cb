"""The tutorials of `docs/tutorials/`: percent scripts (jupytext), which are executed, and their pages with what came of them.

`make docs` puts the pages into the site, `tests/tools/test_tutorials.py` runs each; `jupytext --to ipynb FILE` makes a notebook of one.
"""

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import jupytext
from nbclient import NotebookClient
from nbconvert import MarkdownExporter
from nbformat import NotebookNode

FOLDER = Path(__file__).parents[1] / "docs" / "tutorials"
SECONDS = 900
"""Longest time of a cell; on an idle core a whole tutorial takes less than 60."""


class Rendered(NamedTuple):
    """A tutorial as it is shown."""

    markdown: str
    pictures: dict[str, bytes]  # by name, as the page links to them


def tutorials() -> list[Path]:
    """In the order in which they are read."""
    return sorted(FOLDER.glob("*.py"))


def executed(path: Path) -> NotebookNode:
    """Run in a folder of its own, where it leaves nothing; an error in a cell is raised. Of what Python says on standard error nothing is
    kept: progress, which differs from one time to the next."""
    notebook = jupytext.read(path)
    commands = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "TTY_COMPATIBLE": "0"}
    with TemporaryDirectory() as folder:
        place, quiet = {"metadata": {"path": folder}}, ["--log-level=ERROR"]
        client = NotebookClient(notebook, kernel_name="python3", resources=place, extra_arguments=quiet)
        client.timeout = client.startup_timeout = SECONDS
        client.coalesce_streams = True  # so that progress between two lines does not part them
        client.execute(env=os.environ | commands)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                if output.output_type == "stream":
                    output.text = output.text.replace("\r\n", "\n")  # a shell's
    return notebook


def rendered(path: Path) -> Rendered:
    """Run, as a page of Markdown."""
    markdown, resources = MarkdownExporter().from_notebook_node(executed(path), {"unique_key": path.stem, "output_files_dir": "."})
    return Rendered(markdown.replace("![png](", "![Drawn by the code above]("), resources["outputs"])
