"""Which feature of one dictionary is which of another, or of a world's truth: the Hungarian method on cosines of their directions."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from temporallens.dictionaries.base import Dictionary

MATCH = 0.9
"""Cosine from which two directions count as the same; no two true directions of a world are nearly as close."""


class Match(NamedTuple):
    """T features and the rows of another decoder that are assigned to them."""

    feature: Int[np.ndarray, " T"]  # row of the decoder, 0 where there is none
    assigned: Bool[np.ndarray, " T"]  # whether there is one
    cosine: Float[np.ndarray, " T"]  # 0 where there is none
    matched: Bool[np.ndarray, " T"]  # cosine of MATCH or more, and the row fires


def match_features(cosines: Float[np.ndarray, "T F"], fires: Bool[np.ndarray, " F"]) -> Match:
    """Assign each feature a row of its own so that the cosines have the largest sum."""
    from scipy.optimize import linear_sum_assignment  # a second to import

    first, rows = linear_sum_assignment(cosines, maximize=True)
    feature, cosine = np.zeros(len(cosines), np.int64), np.zeros(len(cosines))
    assigned, alive = np.zeros(len(cosines), bool), np.zeros(len(cosines), bool)
    feature[first], cosine[first], assigned[first], alive[first] = rows, cosines[first, rows], True, fires[rows]
    return Match(feature, assigned, cosine, assigned & (cosine >= MATCH) & alive)


def directions_of(dictionary: Dictionary) -> Float[np.ndarray, "F D"]:
    """Decoder rows of unit norm in float64; zeros where a row is zero."""
    decoder = dictionary.decoder.detach().double().cpu().numpy()
    norms = np.linalg.norm(decoder, axis=1, keepdims=True)
    return np.asarray(decoder / np.where(norms > 0, norms, 1.0))
