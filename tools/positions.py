"""Do the position metrics find what is there, and nothing else? `python -m tools.positions RUN [RUN ...]`

The runs are finished studies of worlds with known answers (`studies/worlds.yaml`, `studies/null-world.yaml`). Three things are asked:

- of the true codes of fresh worlds, with the policy of each run's world and other seeds, as many sequences as a run holds out;
- of every trained dictionary of the run, on its held-out documents: power by class over matched features with enough firings;
- of the same dictionaries after one random circular shift of every sequence, which leaves nothing to be found.

A discovery is q < .05; `bits` is the median information of discoveries, `any` says in how many measurements there was one. Global
features are the false discoveries; in a null world, and after a shift, all are. A trained dictionary's features may truly depend on
position where no true feature does: they also carry the world's offset, which moves with position, and masks close some by mistake.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from temporallens.activations.made.worlds import CLASSES, GLOBAL, Truth, WorldPolicy, read_truth, true_codes, truth_of
from temporallens.activations.store import ActivationStore
from temporallens.dictionaries.saving import load_dictionary
from temporallens.evaluation.firings import Firings
from temporallens.evaluation.heldout import find_firings
from temporallens.evaluation.known.worlds import true_cosines
from temporallens.evaluation.matching import match_features
from temporallens.evaluation.positions.specialisation import PositionsPolicy, Specialisation, measure_specialisation
from temporallens.layout import RunFolder
from temporallens.study.reading import read_study

WORLDS = 10
"""Fresh worlds."""


def firings_of(codes: np.ndarray, positions: int) -> Firings:
    """Codes `[n * positions, F]` of whole sequences as firings, position 0 left out, four sequences in a document."""
    position = np.tile(np.arange(positions, dtype=np.int32), len(codes) // positions)
    sequence = np.repeat(np.arange(len(codes) // positions, dtype=np.int32), positions)
    counted = position > 0
    row, feature = codes[counted].nonzero()
    return Firings(
        row=row.astype(np.int32),
        feature=feature.astype(np.int32),
        value=codes[counted][row, feature].astype(np.float32),
        position=position[counted],
        index=position[counted],
        sequence=sequence[counted],
        stretch=sequence[counted],
        document=sequence[counted] // 4,
        token=np.full(int(counted.sum()), -1, dtype=np.int32),
        features=codes.shape[1],
        positions=positions,
    )


def turned(firings: Firings, generator: np.random.Generator) -> Firings:
    """Every sequence's firings turned in a circle by a random offset: what is left of position is chance."""
    number = np.cumsum(np.diff(firings.sequence, prepend=firings.sequence[:1]) != 0)
    lengths = np.bincount(number)
    first = (np.cumsum(lengths) - lengths)[number]
    there = first + (np.arange(len(number)) - first + generator.integers(0, lengths)[number]) % lengths[number]
    row = there[firings.row].astype(np.int32)
    order = np.lexsort((firings.feature, row))
    return firings._replace(row=row[order], feature=firings.feature[order], value=firings.value[order])


class Tally:
    """Features tested and found, by class, over several measurements."""

    def __init__(self) -> None:
        self.tested, self.found = np.zeros(len(CLASSES), int), np.zeros(len(CLASSES), int)
        self.below = 0  # features with p < .05
        self.others = np.zeros(2, int)  # measured features that match no true one: tested, found
        self.bits: list[float] = []  # information of features that are found
        self.measurements = self.with_any = 0
        self.seconds = 0.0

    def add(self, firings: Firings, kind: np.ndarray, policy: PositionsPolicy) -> Specialisation:
        """`kind` is the class of each feature of `firings`, -1 where it matches no true one."""
        started = time.process_time()
        measured = measure_specialisation(firings, policy)
        self.seconds += time.process_time() - started
        classes = kind[measured.features.feature]
        for number in range(len(CLASSES)):
            self.tested[number] += int((classes == number).sum())
            self.found[number] += int(measured.specialised[classes == number].sum())
        self.others += [int((classes < 0).sum()), int(measured.specialised[classes < 0].sum())]
        self.bits += measured.features.information[measured.specialised].tolist()
        self.below += int((measured.features.p < 0.05).sum())
        self.measurements += 1
        self.with_any += bool(measured.specialised.any())
        return measured

    def line(self) -> str:
        """Discoveries of each class over features tested; false ones; the rest."""
        by_class = "".join(_part(found, tested, 15) for found, tested in zip(self.found, self.tested, strict=True))
        false = _part(self.found[GLOBAL], self.found.sum(), 15)
        everything = self.tested.sum() + self.others[0]
        share = f"{self.below / everything:>9.3f}" if everything else f"{'-':>9}"
        worlds, bits = f"{self.with_any}/{self.measurements}", f"{np.median(self.bits):.4f}" if self.bits else "-"
        others, seconds = _part(self.others[1], self.others[0], 15), self.seconds / self.measurements
        return f"{by_class}{others}{false}{share}{bits:>9}{worlds:>8}{seconds:>8.1f}"


HEADER = (
    f"{'':<26}" + "".join(f"{name:>15}" for name in (*CLASSES, "unmatched", "false")) + f"{'p < .05':>9}{'bits':>9}{'any':>8}{'CPU s':>8}"
)


def _part(found: int, tested: int, width: int) -> str:
    return f"{f'{found}/{tested}' + (f' {found / tested:.3f}' if tested else ''):>{width}}"


def kinds(cosines: np.ndarray, firings: Firings, truth: Truth) -> np.ndarray:
    """Class of the true feature that each decoder row is matched with, -1 where there is none."""
    match = match_features(cosines, firings.counts > 0)
    kind = np.full(firings.features, -1)
    kind[match.feature[match.matched]] = truth.profiles.kind[match.matched]
    return kind


def fresh_worlds(policy: WorldPolicy, sequences: int, worlds: int) -> Iterator[tuple[WorldPolicy, Firings]]:
    """True codes of worlds like this one."""
    for seed in range(1, worlds + 1):
        fresh = policy.model_copy(update={"seed": policy.seed + seed})
        yield fresh, firings_of(true_codes(fresh, np.arange(sequences)), fresh.positions)


def report(folder: Path, policy: PositionsPolicy, worlds: int, seeds: int | None) -> None:
    """Everything about one run's worlds."""
    study = read_study(RunFolder(folder).study).study
    for entry in study.activations:
        store = ActivationStore(RunFolder(folder).store(entry))
        truth, held_out = read_truth(store.folder), store.split(study.training.held_out, study.training.data_seed).held_out
        print(f"\n{folder.name}: {entry} ({truth.policy.variant} world, {len(held_out)} held-out sequences)\n{HEADER}")
        if worlds and truth.policy.variant in {"known", "null"}:
            tally = Tally()
            for fresh, firings in fresh_worlds(truth.policy, len(held_out), worlds):
                tally.add(firings, truth_of(fresh).profiles.kind, policy)
            print(f"{f'true codes, {worlds} worlds':<26}{tally.line()}", flush=True)
        for family in study.arms:
            as_is, shifted = Tally(), Tally()
            for training in study.trainings():
                if (training.activations, training.arm) == (entry, family) and training.seed in study.seeds[:seeds]:
                    dictionary = load_dictionary(RunFolder(folder).arm(training))
                    firings = find_firings(dictionary, store, held_out)
                    kind = kinds(true_cosines(dictionary, truth), firings, truth)
                    as_is.add(firings, kind, policy)
                    shifted.add(turned(firings, np.random.default_rng(training.seed)), kind, policy)
            print(f"{family:<26}{as_is.line()}\n{'  after a random shift':<26}{shifted.line()}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="folders of finished studies of worlds")
    parser.add_argument("--worlds", type=int, default=WORLDS, help="fresh worlds for the true codes")
    parser.add_argument("--seeds", type=int, help="training seeds to look at, by default all")
    chosen = parser.parse_args()
    torch.set_grad_enabled(False)
    for folder in chosen.runs:
        report(folder, PositionsPolicy(), chosen.worlds, chosen.seeds)


if __name__ == "__main__":
    main()
