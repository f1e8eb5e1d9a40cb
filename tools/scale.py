"""Write the table of a billion tokens into docs/scale.md.

    python -m tools.scale

Each row is the plan that `temporallens run studies/gemma-2-2b-stream.yaml --dry-run --device h100 --processes P --set
arms.batchtopk.features=F --set arms.positional.features=F` prints, without its folder, and with `--json` in full.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from temporallens.files import write_text
from temporallens.study.devices import DEVICES, Company
from temporallens.study.plan import most_memory, plan_study
from temporallens.study.reading import read_study
from temporallens.wording import readable_bytes

ROOT = Path(__file__).parents[1]
STUDY, PAGE = ROOT / "studies" / "gemma-2-2b-stream.yaml", ROOT / "docs" / "scale.md"
FEATURES, PROCESSES = (16_384, 65_536), (1, 8, 64)
BEGIN, END = "<!-- python -m tools.scale -->", "<!-- end -->"
COLUMNS = (
    "features",
    "H100s",
    "forward passes, h",
    "cutting and spreading the text, h",
    "training, h",
    "all, h",
    "memory of each",
    "exchanged a step: gradients",
    "candidates",
    "stream",
)


def rows() -> Iterator[list[str]]:
    """One for each number of features and of devices; both dictionaries of the study learn side by side."""
    for features in FEATURES:
        study = read_study(STUDY, changes=[f"arms.{arm}.features={features}" for arm in ("batchtopk", "positional")])
        for count in PROCESSES:
            with TemporaryDirectory() as folder:
                lines = plan_study(study, Path(folder), Company(count, DEVICES["h100"])).lines
            trained = [line for line in lines if line.course is not None]
            reading, feeding, learning = (sum(part) for part in zip(*(line.course for line in trained if line.course), strict=True))
            traffic = [line.traffic for line in trained if line.traffic]
            sizes = [sum(one.gradients for one in traffic), sum(one.candidates for one in traffic), traffic[0].stream if traffic else 0]
            whole = sum(line.seconds or 0.0 for line in trained)
            hours = (f"{seconds / 3600:.2f}" for seconds in (reading, feeding, learning, whole))
            exchanged = [readable_bytes(size) if size else "nothing" for size in sizes]
            yield [f"{features:,}", str(count), *hours, readable_bytes(most_memory(lines)), *exchanged]


def table() -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (COLUMNS, *rows())]
    return "\n".join([lines[0], f"|{'---|' * len(COLUMNS)}", *lines[1:]])


def main() -> None:
    """Put the table between its marks."""
    page = PAGE.read_text("utf-8")
    write_text(PAGE, re.sub(f"{BEGIN}.*?{END}", f"{BEGIN}\n\n{table()}\n\n{END}", page, flags=re.DOTALL))


if __name__ == "__main__":
    main()
