"""Everything that is measured of positions in one dictionary, put together: which features depend on position (`specialisation`), what
of that survives hardening, annealing and another seed (`retention`), and what masks and weights follow (`correlations`).

`docs/method.md`, "Position metrics", says which number answers which of the lab notes' open questions.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from temporallens.activations.clocks import over_positions
from temporallens.activations.store import ActivationStore
from temporallens.defaults import own_defaults
from temporallens.dictionaries.base import Dictionary
from temporallens.dictionaries.saving import load_dictionary
from temporallens.evaluation.firings import profile
from temporallens.evaluation.heldout import HeldOut
from temporallens.evaluation.positions.correlations import MaskAgreement, PositionCorrelations, correlate_positions, mask_agreement
from temporallens.evaluation.positions.retention import Change, ProfileRetention, SeedAgreement, compare_seeds, compare_states, measure
from temporallens.evaluation.positions.specialisation import FeatureColumns, PositionsPolicy, describe, refuse_small
from temporallens.evaluation.section import Section, Subject
from temporallens.evaluation.statistics import Estimate
from temporallens.training.history import load_history
from temporallens.training.snapshots import snapshots_of, soft_of
from temporallens.wording import UNKNOWN, Row, Table, estimated, fixed

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
    features: FeatureColumns | None  # every measured feature


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
    cache: Path | None = None,
) -> PositionMeasures:
    """Measure `dictionary` on the held-out sequences, whose encodings are kept in `cache`.

    `soft` is the dictionary as it was right before its masks hardened, `weights` are the position weights that it was trained with
    (the last row of `position_weight` in its history), `snapshots` earlier states by step, `other_seeds` the same arm trained from other
    seeds. Raises TemporalLensError where held-out documents have too few tokens, or where nothing fires.
    """
    documents = HeldOut(store, held_out, cache)
    measured = measure(dictionary, documents, policy)
    found = describe(measured.firings, measured.found, policy)
    gates = dictionary.gates_by_position()
    openness = None if gates is None else over_positions(gates.double().mean(1).cpu().numpy(), store.positions)
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
        hardening=None if soft is None else compare_states(measure(soft, documents, policy), measured, policy),
        annealing={
            step: compare_states(measure(load_dictionary(folder), documents, policy), measured, policy)
            for step, folder in sorted((snapshots or {}).items())
        },
        seeds=[compare_seeds((dictionary, measured), (other, measure(other, documents, policy)), policy) for other in other_seeds],
        correlations=correlate_positions(measured.errors, openness, weights, policy),
        mask=mask_agreement(dictionary, documents, profile(measured.firings), policy),
        features=found.features.columns(),
    )


def _of_subject(subject: Subject, policy: PositionsPolicy) -> PositionMeasures:
    soft = soft_of(subject.folder)
    return measure_positions(
        subject.dictionary,
        subject.store,
        subject.held_out,
        policy,
        soft=None if soft is None else load_dictionary(soft),
        weights=load_history(subject.folder / "history.safetensors")["position_weight"][-1],
        snapshots=snapshots_of(subject.folder),
        other_seeds=subject.other_seeds(),
        cache=subject.cache,
    )


def tables(found: Mapping[str, PositionMeasures]) -> list[Table]:
    """Which features depend on position; what of it hardening and other seeds keep; what masks and weights follow."""
    depend = [
        Row(
            head,
            [
                f"{measured.specialised.n:,}",
                estimated(measured.specialised, 1, 100, " %"),
                estimated(measured.information, 2, 1000),
                estimated(measured.specialisation),
                estimated(measured.eta2, 2, 100, " %"),
                estimated(measured.reliability, 2),
            ],
        )
        for head, measured in found.items()
    ]
    return [
        Table(
            "Features that depend on position",
            [
                "dictionary",
                "features measured",
                "specialised",
                "information, millibits",
                "specialisation (PSI)",
                "η²",
                "split-half reliability",
            ],
            depend,
            "Specialised: the circular-shift null is rejected, q < .05. Means over measured features, what chance gives taken off.",
        ),
        *_kept_tables(found),
        *_following_tables(found),
    ]


def _kept_tables(found: Mapping[str, PositionMeasures]) -> list[Table]:
    rows = []
    for head, measured in found.items():
        if measured.hardening:
            rows.append(_kept_row(f"{head}: soft to hard", measured.hardening.pattern, measured.hardening))
        rows += [_kept_row(f"{head}: step {step} to the end", change.pattern, change) for step, change in measured.annealing.items()]
        rows += [_kept_row(f"{head}: other seed, {number}", other.pattern, None) for number, other in enumerate(measured.seeds, 1)]
    columns = ["from, to", "pairs", "profiles alike (ρ)", "specialised that stay so", "by chance", "firings in common", "FVE gap", "L0 gap"]
    note = (
        "Profiles alike: Spearman's correlation of mean activations by position, mean over features. Another seed's features are "
        "matched by their decoder rows."
    )
    return [Table("Position specialisation retention", columns, rows, note)] if rows else []


def _kept_row(head: str, pattern: ProfileRetention, change: Change | None) -> Row:
    cells = [
        f"{pattern.pairs:,}",
        estimated(pattern.profile, 2),
        estimated(pattern.set_retention, 1, 100, " %"),
        UNKNOWN if pattern.set_chance is None else f"{fixed(100 * pattern.set_chance, 1)} %",
    ]
    if change is None:
        return Row(head, [*cells, UNKNOWN, UNKNOWN, UNKNOWN])
    return Row(
        head,
        [*cells, estimated(change.firing_overlap, 1, 100, " %"), estimated(change.fve_gap, 4), estimated(change.l0_gap, 2)],
    )


def _following_tables(found: Mapping[str, PositionMeasures]) -> list[Table]:
    rows = []
    for head, measured in found.items():
        correlations, mask = measured.correlations, measured.mask
        if mask is None and correlations.weight_unexplained.value is None:
            continue
        rows.append(
            Row(
                head,
                [
                    f"{correlations.openness_unexplained.n:,}",
                    estimated(correlations.openness_unexplained, 2),
                    estimated(correlations.weight_unexplained, 2),
                    fixed(mask and mask.auroc_ungated, 3),
                    UNKNOWN if mask is None or mask.closed_mass is None else f"{fixed(100 * mask.closed_mass, 2)} %",
                ],
            )
        )
    columns = ["dictionary", "positions", "openness, unexplained (ρ)", "weight, unexplained (ρ)", "mask AUROC", "closed mass"]
    note = (
        "Correlations over positions with the share of their variance that is left unexplained. Mask AUROC: open where the feature "
        "would fire if the mask were open everywhere."
    )
    return [Table("What masks and position weights follow", columns, rows, note)] if rows else []


SECTION = Section(
    name="positions",
    policy=PositionsPolicy,
    version=2,
    measure=_of_subject,
    measures=PositionMeasures,
    details=("features",),
    across_seeds=True,
    tables=tables,
    fits=refuse_small,
)
