"""The tutorials run, and their pages show what they print and draw."""

from pathlib import Path

import pytest
from tools.tutorials import rendered, tutorials

pytest.importorskip("ipykernel")


def test_every_tutorial_is_in_the_site() -> None:
    listed = (Path(__file__).parents[2] / "mkdocs.yml").read_text("utf-8")
    assert len(tutorials()) == 5
    assert all(f"tutorials/{path.stem}.md" in listed for path in tutorials())


def test_a_page_holds_prose_code_and_results_and_no_progress(tmp_path: Path) -> None:
    source = tmp_path / "small.py"
    cells = (
        "[markdown]\n# # Title\n",
        "\nimport sys\n\nprint(6 * 7)\nprint('half', file=sys.stderr)\n",
        "\n# !echo from the shell\n",
    )
    source.write_text("".join(f"# %% {cell}\n" for cell in cells))
    page = rendered(source)
    assert page.markdown.startswith("# Title") and "```python" in page.markdown
    assert "    42\n" in page.markdown and "    from the shell\n" in page.markdown and "half\n\n" not in page.markdown
    assert page.pictures == {}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", tutorials(), ids=lambda path: path.stem)
def test_a_tutorial_runs(path: Path) -> None:
    page = rendered(path)
    assert page.markdown.startswith("# ")
    assert all(name in page.markdown and picture.startswith(b"\x89PNG") for name, picture in page.pictures.items())
