"""Made firings with known profiles, for what is measured on firings alone."""

import numpy as np

from temporallens.evaluation.firings import Firings

POSITIONS = 32


def sampled(rate: np.ndarray, sequences: int = 300, seed: int = 0) -> Firings:
    """Independent firings at these rates `[F, P]`; position 0 is excluded."""
    generator = np.random.default_rng(seed)
    features, positions = rate.shape
    return firings_of(generator.random((sequences, positions - 1, features)) < rate[:, 1:].T, generator)


def firings_of(fires: np.ndarray, generator: np.random.Generator) -> Firings:
    """What fires at positions 1 and later of sequences, `[N, S, F]`, with activations drawn for it; four sequences are a document."""
    sequences, length, features = fires.shape
    row, feature = np.nonzero(fires.reshape(-1, features))
    column = np.tile(np.arange(1, length + 1, dtype=np.int32), sequences)
    sequence = np.repeat(np.arange(sequences, dtype=np.int32), length)
    return Firings(
        row=row.astype(np.int32),
        feature=feature.astype(np.int32),
        value=(1 + generator.standard_exponential(len(row)) / 2).astype(np.float32),
        position=column,
        index=column,
        sequence=sequence,
        stretch=sequence,
        document=sequence // 4,
        token=(1000 * sequence + column).astype(np.int32),
        features=features,
        positions=length + 1,
    )


def box(first: int, last: int, level: float = 0.3, positions: int = POSITIONS) -> np.ndarray:
    place = np.arange(positions)
    return level * ((place >= first) & (place <= last))


def comb(period: int, phase: int, level: float = 0.3, positions: int = POSITIONS) -> np.ndarray:
    return level * (np.arange(positions) % period == phase)


def flat(features: int, level: float = 0.05) -> np.ndarray:
    return np.full((features, POSITIONS), level)
