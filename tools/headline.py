"""The README's headline picture: one network where position matters, one where it does not.

    python -m tools.headline RECORDS LANGUAGE [--out FILE]

`RECORDS` and `LANGUAGE` are the folders of finished runs of `studies/records.yaml` and `studies/middle.yaml`.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from temporallens.activations.made.records import read_layout
from temporallens.activations.store import ActivationStore
from temporallens.dictionaries.saving import load_dictionary
from temporallens.errors import TemporalLensError
from temporallens.evaluation.known.fields import count_firings
from temporallens.evaluation.results import load_results
from temporallens.figures.masks import Case, draw_two_cases
from temporallens.figures.save import save
from temporallens.layout import RunFolder, RunId

OUT = Path("docs/images/two-cases.png")


class Wanted(NamedTuple):
    """Which dictionary of a run is drawn, beside which baseline, and at which L0."""

    activations: str
    name: str
    family: str
    baseline: str
    level: int


RECORDS = Wanted("records", "a network of formatted records", "positional", "position_mean", 8)
LANGUAGE = Wanted("smollm2-middle", "SmolLM2-135M-Instruct after block 12", "positional_multiplicative", "position_mean", 32)


def case_of(folder: Path, wanted: Wanted, example: str | None = None, fields: Mapping[str, tuple[int, ...]] | None = None) -> Case:
    """One dictionary's mask (first seed), with the means over seeds of what it and its baseline leave unexplained at equal L0."""
    results = load_results(folder)
    reached = {(point.family, point.l0): point.fve.value for point in results.comparison[wanted.activations].reached}
    for family in (wanted.family, wanted.baseline):
        if (family, float(wanted.level)) not in reached:
            raise TemporalLensError(f"{folder} has no '{family}' at L0 = {wanted.level} to draw; run its study as it is shipped")
    paths = RunFolder(folder)
    path = paths.arm(RunId(wanted.activations, f"{wanted.family}-k{wanted.level}", results.study.seeds[0]))
    dictionary, store = load_dictionary(path), ActivationStore(paths.store(wanted.activations))
    gates = dictionary.gates_by_position()
    if gates is None:
        raise TemporalLensError(f"{path} has no mask to draw")
    training = results.study.training
    held_out = store.split(training.held_out, training.data_seed).held_out
    return Case(
        name=wanted.name,
        gates=gates.numpy(),
        unexplained=1 - reached[wanted.family, float(wanted.level)],
        unmasked=1 - reached[wanted.baseline, float(wanted.level)],
        comparison=f"per-position centring without masks, L0 = {wanted.level}",
        live=count_firings(dictionary, store, held_out)[0].sum(0) > 0,
        example=example,
        fields=fields or {},
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.headline", description=__doc__.splitlines()[0])
    parser.add_argument("records", type=Path, help="folder of a finished run of studies/records.yaml")
    parser.add_argument("language", type=Path, help="folder of a finished run of studies/middle.yaml")
    parser.add_argument("--out", type=Path, default=OUT)
    chosen = parser.parse_args()
    torch.set_grad_enabled(False)
    layout = read_layout(RunFolder(chosen.records).store(RECORDS.activations))
    figure = draw_two_cases(case_of(chosen.records, RECORDS, layout.example, layout.fields), case_of(chosen.language, LANGUAGE))
    print(save(figure, chosen.out))


if __name__ == "__main__":
    main()
