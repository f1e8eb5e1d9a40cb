"""All sections of the evaluation. A new one is a file that declares its `SECTION`, and here its import, its name in `SECTIONS` and a field
of `Evaluation` that leaves no trace where it is not asked for, as that of `drift` (`CONTRIBUTING.md`, "A section")."""

from typing import Literal

from pydantic import Field

from temporallens.evaluation.bits.section import SECTION as BITS, BitsPolicy
from temporallens.evaluation.clusters.section import SECTION as CLUSTERS, ClustersPolicy
from temporallens.evaluation.cost import SECTION as COST, CostPolicy
from temporallens.evaluation.features import SECTION as FEATURES, FeaturesPolicy
from temporallens.evaluation.interventions.section import SECTION as INTERVENTIONS, InterventionsPolicy
from temporallens.evaluation.model.fidelity import SECTION as FIDELITY, FidelityPolicy
from temporallens.evaluation.model.splicing import SECTION as SPLICING, SplicingPolicy
from temporallens.evaluation.order.section import SECTION as ORDER, OrderPolicy
from temporallens.evaluation.positions.bos import SECTION as BOS, BosPolicy
from temporallens.evaluation.positions.closing import SECTION as CLOSING, ClosingPolicy
from temporallens.evaluation.positions.drift import SECTION as DRIFT, DriftPolicy
from temporallens.evaluation.positions.length import SECTION as LENGTH, LengthPolicy
from temporallens.evaluation.positions.octaves import SECTION as OCTAVES, OctavesPolicy
from temporallens.evaluation.positions.section import SECTION as POSITIONS, PositionsPolicy
from temporallens.evaluation.positions.sinks import SECTION as SINKS, SinksPolicy
from temporallens.evaluation.probing.section import SECTION as PROBING, ProbingPolicy
from temporallens.evaluation.section import Section
from temporallens.evaluation.tokens import SECTION as TOKENS, TokensPolicy
from temporallens.settings import Settings, not_asked

SECTIONS: dict[str, Section] = {
    section.name: section
    for section in (
        *(POSITIONS, OCTAVES, SINKS, CLOSING, BITS, TOKENS, CLUSTERS, FEATURES),
        *(SPLICING, FIDELITY, INTERVENTIONS, ORDER, PROBING, DRIFT, LENGTH, BOS, COST),
    )
}
"""In the order in which they are measured and stand in `results.json`."""


class Evaluation(Settings):
    """What is measured beyond reconstruction; a section that is left out is not measured, `{}` takes its defaults."""

    runs: Literal["shown", "all"] = "shown"
    """Which dictionaries: of each arm on each activations entry the first seed at the middle one of its levels, or every one."""
    positions: PositionsPolicy | None = None
    """Which features depend on position, what of that hardening and other seeds keep, what masks and weights follow."""
    octaves: OctavesPolicy | None = Field(None, exclude_if=not_asked)
    """Whether some positions are explained worse than others."""
    sinks: SinksPolicy | None = Field(None, exclude_if=not_asked)
    """Which features live on the first tokens of rows, or on sinks."""
    closing: ClosingPolicy | None = Field(None, exclude_if=not_asked)
    """What a mask made after training closes at equal FVE."""
    bits: BitsPolicy | None = Field(None, exclude_if=not_asked)
    """How many bits of which features fire are known beforehand, from position, token or their own past."""
    tokens: TokensPolicy | None = Field(None, exclude_if=not_asked)
    """Which features detect one token or go on firing, and what is known without codes."""
    clusters: ClustersPolicy | None = None
    """Features grouped by when in the sequence they fire."""
    features: FeaturesPolicy | None = None
    """What there is to see of every feature: the report's feature browser."""
    splicing: SplicingPolicy | None = None
    """What the model loses when it goes on from reconstructions."""
    fidelity: FidelityPolicy | None = None
    """What features follow when a prefix pushes the text to later positions."""
    interventions: InterventionsPolicy | None = Field(None, exclude_if=not_asked)
    """What the model loses when features, or what position says, are taken away: whether what is encoded is used."""
    order: OrderPolicy | None = None
    """Probing on tasks that a bag of words cannot do."""
    probing: ProbingPolicy | None = None
    """Sparse probing on labelled sets."""
    drift: DriftPolicy | None = Field(None, exclude_if=not_asked)
    """How dictionaries do on rows longer than those that they were trained on."""
    length: LengthPolicy | None = Field(None, exclude_if=not_asked)
    """What becomes of features, and of what the model makes of reconstructions, on such rows."""
    bos: BosPolicy | None = Field(None, exclude_if=not_asked)
    """What rests on the token that opens rows, read without it and with another in its place."""
    cost: CostPolicy | None = Field(None, exclude_if=not_asked)
    """What a dictionary costs beside its codes: parameters, arithmetic, and everything that is decoded."""

    def sections(self, *, of_model: bool) -> dict[str, Settings]:
        """The policies of what is measured on activations of a model, or of another source, by section."""
        policies = {name: getattr(self, name) for name, section in SECTIONS.items() if of_model or not section.reads_model}
        return {name: policy for name, policy in policies.items() if policy is not None}
