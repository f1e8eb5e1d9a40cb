"""The package as others get it: built from the source archive, installed outside of the clone, it runs its studies by name."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import temporallens
from temporallens.errors import TemporalLensError
from temporallens.study.shipped import shipped_studies, study_at

ROOT = Path(__file__).parents[1]


def test_the_shipped_studies_are_those_of_the_repository() -> None:
    assert shipped_studies() == {path.stem: path for path in sorted((ROOT / "studies").glob("*.yaml"))}
    assert "quickstart" in shipped_studies()


def test_a_name_is_a_shipped_study_unless_a_file_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    quickstart = ROOT / "studies" / "quickstart.yaml"
    assert study_at(Path("quickstart")) == quickstart
    Path("quickstart").mkdir()
    assert study_at(Path("quickstart")) == quickstart
    for path in (Path("./sub/quickstart"), Path("quickstart.yaml"), tmp_path / "quickstart"):
        assert study_at(path) == path
    Path("middle").write_text("name: mine")
    assert study_at(Path("middle")) == Path("middle")
    with pytest.raises(TemporalLensError, match="neither a file nor a shipped study called 'quickstrat'; did you mean 'quickstart'"):
        study_at(Path("quickstrat"))


def test_the_citation_has_the_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == temporallens.__version__
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()


def called(*arguments: str, folder: Path, **environment: str) -> str:
    finished = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_wheel_works_without_the_clone(tmp_path: Path) -> None:
    called("-m", "build", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(ROOT), folder=tmp_path)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert wheel.name == f"temporallens-{temporallens.__version__}-py3-none-any.whl"
    assert (tmp_path / "dist" / f"temporallens-{temporallens.__version__}.tar.gz").is_file()
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    called("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site), str(wheel), folder=elsewhere)
    where = {"PYTHONPATH": str(site), "TEMPORALLENS_CACHE": str(tmp_path / "cache")}
    assert called("-c", "import temporallens; print(temporallens.__file__)", folder=elsewhere, **where).startswith(str(site))
    plan = called("-m", "temporallens", "run", "quickstart", "--dry-run", folder=elsewhere, **where)
    assert "train/smollm2-middle/positional-seed0" in plan
    assert not list(elsewhere.iterdir())
    assert {path.stem for path in (site / "temporallens" / "studies").iterdir()} == set(shipped_studies())
    assert {path.name for path in (site / "temporallens" / "report" / "templates").iterdir()} >= {"page.html.j2", "page.css", "browser.js"}
    assert (site / "temporallens" / "py.typed").is_file()
