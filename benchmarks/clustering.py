"""Time and memory of temporal clusters for a wide dictionary: all of `cluster_firings`, chance and bootstraps included.

    python -m benchmarks.clustering [--features N] [--distance NAME] [--bins KIND]

The firings are made: features of the five classes of `activations/made/worlds.py`, on rows of 128 tokens, that fire 200 times or more.
"""

import argparse
import sys
import time
from typing import get_args

import numpy as np

from benchmarks.memory import RESET, STATUS, status_bytes
from benchmarks.timing import busy
from temporallens.activations.made.worlds import WorldPolicy, truth_of
from temporallens.evaluation.clusters.policy import ClustersPolicy, DistanceName
from temporallens.evaluation.clusters.section import cluster_firings
from temporallens.evaluation.firings import Firings

POSITIONS, SEQUENCES, SEQUENCES_PER_DOCUMENT = 128, 1024, 4
SHAPES = 256
"""Profiles by position, taken from a world; features take turns."""
LEAST, MEAN = 200, 400
"""Firings of the rarest features, and of an average one."""


def made_firings(features: int, seed: int = 0) -> Firings:
    """Firings of features whose profiles are those of a world's; position 0 is excluded, as it is in a store."""
    generator = np.random.default_rng(seed)
    shapes = truth_of(WorldPolicy(positions=POSITIONS, features=SHAPES)).profiles.rate[:, 1:]
    count = LEAST + generator.geometric(1 / (MEAN - LEAST), size=features)
    feature = np.repeat(np.arange(features), count)
    position = np.empty(len(feature), dtype=np.int64)
    for number, shape in enumerate(shapes):
        members = np.flatnonzero(feature % SHAPES == number)
        position[members] = generator.choice(POSITIONS - 1, size=len(members), p=shape / shape.sum())
    row = generator.integers(SEQUENCES, size=len(feature)) * (POSITIONS - 1) + position
    cell = np.unique(row.astype(np.int64) * features + feature)  # a feature fires once on a row
    rows = SEQUENCES * (POSITIONS - 1)
    sequence = np.repeat(np.arange(SEQUENCES, dtype=np.int32), POSITIONS - 1)
    column = np.tile(np.arange(1, POSITIONS, dtype=np.int32), SEQUENCES)
    return Firings(
        row=(cell // features).astype(np.int32),
        feature=(cell % features).astype(np.int32),
        value=(1 + generator.standard_exponential(len(cell)) / 2).astype(np.float32),
        position=column,
        index=column,
        sequence=sequence,
        stretch=sequence,
        document=sequence // SEQUENCES_PER_DOCUMENT,
        token=np.full(rows, -1, dtype=np.int32),
        features=features,
        positions=POSITIONS,
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clustering", description=__doc__.split("\n")[0])
    parser.add_argument("--features", type=int, default=16384, help="%(default)s unless said otherwise")
    parser.add_argument("--distance", choices=get_args(DistanceName), default="jensen_shannon", help="%(default)s unless said otherwise")
    parser.add_argument("--bins", choices=("auto", "positions", "log"), default="positions", help="%(default)s, the dearest")
    chosen = parser.parse_args()
    if warning := busy():
        print(f"warning: {warning}", file=sys.stderr)
    firings = made_firings(chosen.features)
    if RESET.exists():
        RESET.write_text("5")  # the high-water mark of memory begins anew
    started, processor = time.perf_counter(), time.process_time()
    measures = cluster_firings(firings, ClustersPolicy(distance=chosen.distance, bins=chosen.bins, least_firings=LEAST // 2))
    seconds, processor_seconds = time.perf_counter() - started, time.process_time() - processor
    bins = 0 if measures.bins is None else len(measures.bins.first)
    memory = f", peak memory {status_bytes('VmHWM') / (1 << 30):.2f} GiB" if STATUS.exists() else ""
    print(
        f"{measures.kept:,} features, {len(firings.row):,} firings, {bins} bins, {chosen.distance}: "
        f"{seconds:.0f} s ({processor_seconds:.0f} s of processor time){memory}; {measures.clusters} clusters"
    )


if __name__ == "__main__":
    main()
