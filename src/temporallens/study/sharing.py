"""`temporallens export`: a dictionary in another library's files, with a card that says what its run measured, and to the hub.

The folder is made under a name of its own and gets the one that was asked for when everything is done: what fails leaves nothing behind.
"""

import shutil
import tempfile
from pathlib import Path

from temporallens.errors import TemporalLensError
from temporallens.evaluation.results import RunResult, load_results
from temporallens.files import explained, make_folder, refuse_full, user_path
from temporallens.interop.card import PICTURE, Card, check_licence
from temporallens.interop.exporting import check_form, export
from temporallens.interop.pushing import check_push, push
from temporallens.layout import RunFolder


def share(
    dictionary: Path | str,
    form: str,
    out: Path | str,
    licence: str | None = None,
    repository: str | None = None,
    private: bool = False,
    revision: str | None = None,
) -> str:
    """Export the dictionary saved in a folder to the folder `out`, and upload that to `repository` where one is given; returns where it is.

    Raises TemporalLensError where the library has no form for it, for a folder that is not empty, and where the hub does not take it.
    """
    dictionary, out = user_path(dictionary), user_path(out)
    check_form(form)
    check_licence(licence)
    refuse_full(out)
    if repository is not None:
        check_push(repository)
    elif private or revision is not None:
        raise TemporalLensError(f"--{'private' if private else 'revision'} goes with --push user/name")
    measured, first = measured_in(dictionary)
    make_folder(out.parent)
    with explained(out.parent), tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
        made = Path(temporary) / "export"
        if measured is not None:
            _draw(measured, first, made / PICTURE)
        export(dictionary, form, made, Card(licence, repository, measured, picture=measured is not None))
        place = str(out) if repository is None else push(made, repository, private, revision)
        if out.exists():
            out.rmdir()
        shutil.move(made, out)
    return place


def measured_in(dictionary: Path) -> tuple[RunResult | None, int]:
    """What the run that a dictionary is in has measured of it, None where it is in none, or in one without results; and the first position
    of its pictures.

    Raises TemporalLensError where these are damaged.
    """
    place = dictionary.resolve()
    if len(place.parents) < 3 or place.parents[1].name != "arms":
        return None, 1
    root = place.parents[2]
    if not RunFolder(root).results.is_file():
        return None, 1
    results = load_results(root)
    found = next((run for run in results.runs if RunFolder(root).arm(run.id) == place), None)
    return found, 1 if found is None else results.activations[found.activations].first_position


def _draw(run: RunResult, first: int, path: Path) -> None:
    from temporallens.figures.card import draw_card  # seconds to import, and a dictionary alone has no picture
    from temporallens.figures.save import save
    from temporallens.figures.style import positions_called

    with positions_called({}, first):
        save(draw_card(run.position_fve, run.position_l0, run.id.title), path)
