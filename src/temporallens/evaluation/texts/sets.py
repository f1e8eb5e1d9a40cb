"""Labelled sets by the names that users give them: shipped ones, those of the hub, tables and folders of tables."""

from collections.abc import Sequence

from temporallens.errors import TemporalLensError, did_you_mean
from temporallens.evaluation.texts.hub import HUB_SETS, hub_set
from temporallens.evaluation.texts.labelled import COLUMNS, Columns, LabelledSet, read_folder, read_table
from temporallens.evaluation.texts.shipped import SHIPPED_SETS, shipped_set
from temporallens.files import user_path

ALL_SHIPPED, ALL_HUB = "embedded", "saebench"


def open_sets(names: Sequence[str], columns: Columns = COLUMNS) -> list[LabelledSet]:
    """The sets that `names` name, in this order: an embedded set (`sst2`) or `embedded` for all of them; one of SAEBench's hub sets
    (`fancyzhx/ag_news`) or `saebench` for the eight; a table (.csv, .jsonl, .parquet), or a folder of tables.

    Raises TemporalLensError for a name that is none of these, for one that comes twice, and for what the readers refuse.
    """
    found: list[LabelledSet] = []
    for name in names:
        path = user_path(name) if name.strip() else None
        if name in SHIPPED_SETS or name == ALL_SHIPPED:
            found += [shipped_set(each) for each in (SHIPPED_SETS if name == ALL_SHIPPED else [name])]
        elif name in HUB_SETS or name == ALL_HUB:
            found += [hub_set(each) for each in (HUB_SETS if name == ALL_HUB else [name])]
        elif path and path.is_dir():
            found += read_folder(path, columns)
        elif path and path.is_file():
            found.append(read_table(path, columns))
        else:
            known = [ALL_SHIPPED, *SHIPPED_SETS, ALL_HUB, *HUB_SETS]
            raise TemporalLensError(f"there is no labelled set '{name}': no file or folder, and no known set{did_you_mean(name, known)}")
    called = [labelled.name for labelled in found]
    twice = next((name for name in called if called.count(name) > 1), None)
    if twice is not None:
        raise TemporalLensError(f"two labelled sets are called '{twice}'; rename one, or leave it out")
    return found
