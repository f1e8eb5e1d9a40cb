"""Everything that is measured of positions in one dictionary, put together: which features depend on position (`specialisation`), what
of that survives hardening, annealing and another seed (`retention`), and what masks and weights follow (`correlations`).

`docs/method.md`, "Position metrics", says which number answers which of the lab notes' open questions.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from temporallens.activations.store import ActivationStore
from temporallens.defaults import own_defaults
from temporallens.dictionaries.base import Dictionary
from temporallens.dictionaries.saving import load_dictionary
from temporallens.evaluation.firings import profile
from temporallens.evaluation.positions.correlations import MaskAgreement, PositionCorrelations, correlate_positions, mask_agreement
from temporallens.evaluation.positions.retention import Change, SeedAgreement, compare_seeds, compare_states, measure
from temporallens.evaluation.positions.specialisation import FeaturePositions, PositionsPolicy
from temporallens.evaluation.statistics import Estimate

__all__ = ["PositionMeasures", "PositionsPolicy", "measure_positions"]


class PositionMeasures(NamedTuple):
    """Position metrics of one dictionary on held-out documents; an estimate's interval is over documents."""

    tokens: int
    positions: int  # with enough tokens
    sequences: int
    documents: int
    specialised: Estimate  # share of measured features that depend on position, at the policy's q; n measured features
    information: Estimate  # position information in bits per token over chance, mean over measured features
    specialisation: Estimate  # PSI over chance, mean over measured features
    eta2: Estimate  # of position, over chance, mean over measured features
    reliability: Estimate  # split-half, mean over measured features; its interval is that of the splits
    hardening: Change | None  # from soft masks to hard ones; None without a soft state
    annealing: dict[int, Change]  # from snapshots, by step, to the end
    seeds: list[SeedAgreement]  # with the dictionaries of other seeds, in the order given
    correlations: PositionCorrelations
    mask: MaskAgreement | None  # None where nothing is masked
    features: FeaturePositions  # every measured feature

    def to_json(self) -> dict[str, Any]:
        """Plain dicts and lists, every number finite or None."""
        return dict(_plain(self))


@own_defaults()
def measure_positions(
    dictionary: Dictionary,
    store: ActivationStore,
    held_out: Int[np.ndarray, " n"],
    policy: PositionsPolicy,
    soft: Dictionary | None = None,
    weights: Float[np.ndarray, " P"] | None = None,
    snapshots: Mapping[int, Path] | None = None,
    other_seeds: Sequence[Dictionary] = (),
) -> PositionMeasures:
    """Measure `dictionary` on the held-out sequences.

    `soft` is the dictionary as it was right before its masks hardened, `weights` are the position weights that it was trained with
    (the last row of `position_weight` in its history), `snapshots` earlier states by step, `other_seeds` the same arm trained from other
    seeds. Raises TemporalLensError where held-out documents have too few tokens, or where nothing fires.
    """
    measured = measure(dictionary, store, held_out, policy)
    found = measured.specialisation
    gates = dictionary.gates_by_position()
    openness = None if gates is None else gates.double().mean(1).cpu().numpy()[np.minimum(np.arange(store.positions), len(gates) - 1)]
    return PositionMeasures(
        tokens=found.tokens,
        positions=found.positions,
        sequences=found.sequences,
        documents=found.documents,
        specialised=found.share,
        information=found.information,
        specialisation=found.specialisation,
        eta2=found.eta2,
        reliability=found.reliability,
        hardening=None if soft is None else compare_states(measure(soft, store, held_out, policy), measured, policy),
        annealing={
            step: compare_states(measure(load_dictionary(folder), store, held_out, policy), measured, policy)
            for step, folder in sorted((snapshots or {}).items())
        },
        seeds=[compare_seeds((dictionary, measured), (other, measure(other, store, held_out, policy)), policy) for other in other_seeds],
        correlations=correlate_positions(measured.errors, openness, weights, policy),
        mask=mask_agreement(dictionary, store, held_out, profile(measured.firings), policy),
        features=found.features,
    )


def _plain(value: Any) -> Any:
    """Named tuples as dicts, keys as text; a table of features gives its own compact form."""
    if isinstance(value, FeaturePositions):
        return value.to_json()
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: _plain(part) for name, part in value._asdict().items()}
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return value
