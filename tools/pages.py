"""What `make docs` adds to the pages of `docs/`: those that stand elsewhere in the repository, tutorials with what came of running them,
and the API of the public names.

A hook of mkdocs (`mkdocs.yml`). Links are followed as they are written for a reader of the repository: to another page of the site where
the file is one, and to nothing, the words alone, where it is not (a file of the source).
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

import temporallens
from temporallens.dictionaries.config import ArmSettings
from temporallens.dictionaries.kinds import ARMS
from tools.tutorials import rendered, tutorials

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Pages of the site that stand outside of `docs/`, by their place in the repository."""
LINK = re.compile(r"(?P<words>!?\[(?:[^\[\]]|\[[^\]]*\])*\])\((?P<target>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)")
"""A link to a file; addresses with a colon, and places in the same page, stay as they are."""


def on_files(files: Files, config: Any) -> Files:
    """The pages that are not in `docs/`."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text("utf-8")))
    files.append(File.generated(config, "python.md", content=names_page()))
    files.append(File.generated(config, "arms.md", content=arms_page()))
    for path in tutorials():
        tutorial = rendered(path)
        files.append(File.generated(config, f"tutorials/{path.stem}.md", content=tutorial.markdown))
        for name, picture in tutorial.pictures.items():
            files.append(File.generated(config, f"tutorials/{name}", content=picture))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links from where the file stands in the repository to where the page stands in the site."""
    sources = {name: source for source, name in PAGES.items()}
    folder = posixpath.dirname(sources.get(page.file.src_uri, f"docs/{page.file.src_uri}"))

    def followed(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link["target"]))
        on_site = PAGES.get(target, target.removeprefix("docs/"))
        if not (target in PAGES or target.startswith("docs/")) or files.get_file_from_path(on_site) is None:
            if not (ROOT / target).exists():
                return link[0]  # which mkdocs refuses
            return link["words"].removeprefix("!")[1:-1]
        return f"{link['words']}({posixpath.relpath(on_site, posixpath.dirname(page.file.src_uri) or '.')}{link['anchor'] or ''})"

    return LINK.sub(followed, markdown)


def names_page() -> str:
    """Every public name but those of arms, from its docstring, by where it stands."""
    homes = {name: f"temporallens.{home}.{name}" for name, home in temporallens._HOMES.items()}
    homes["TemporalLensError"] = "temporallens.errors.TemporalLensError"
    names = [f"::: {homes[name]}\n" for name in sorted(homes, key=str.lower)]
    return "\n".join(["# Python\n\nWhat `import temporallens as tl` has; everything else may move between versions.\n", *names])


def arms_page() -> str:
    """The settings of every arm."""
    arms = [_settings(arm, [name for name in arm.model_fields if name not in ArmSettings.model_fields]) for arm in ARMS.values()]
    common = _settings(ArmSettings, list(ArmSettings.model_fields))
    return "\n".join(
        ["# Arms\n\nWhat a study calls by its `kind`, and Python by its name; what all of them have stands last.\n", *arms, common]
    )


def _settings(arm: type[ArmSettings], names: list[str]) -> str:
    """A class of settings with those of these names, its own or not."""
    return f"::: {arm.__module__}.{arm.__name__}\n    options:\n      inherited_members: true\n      members: {names}\n"
