"""The studies that come with the package, which are run by name: `temporallens run quickstart`.

Their one place is `studies/` of the repository; a wheel has them as `temporallens/studies/`.
"""

from pathlib import Path

from temporallens.errors import TemporalLensError, did_you_mean

PACKAGE = Path(__file__).parents[1]


def shipped_studies() -> dict[str, Path]:
    """Study files by name, in alphabetical order."""
    places = (PACKAGE / "studies", PACKAGE.parents[1] / "studies")  # of a wheel, of a clone
    folder = next((place for place in places if place.is_dir()), places[0])
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def study_at(path: Path) -> Path:
    """`path`, or the shipped study that it names where there is no such file. Raises TemporalLensError for a word that is neither."""
    if path.name != str(path) or path.suffix or path.is_file():
        return path
    shipped = shipped_studies()
    if path.name in shipped or path.exists():
        return shipped.get(path.name, path)
    raise TemporalLensError(f"there is neither a file nor a shipped study called '{path}'{did_you_mean(path.name, shipped)}")
