"""What shapes temporal clusters: the `clusters` section under a study's `evaluation`."""

from typing import Literal

from pydantic import Field

from temporallens.settings import Seed, Settings

DistanceName = Literal["jensen_shannon", "correlation", "motif"]


class ClustersPolicy(Settings):
    """How features are clustered by when they fire, and how often the clusters are drawn anew to see whether they hold."""

    distance: DistanceName = "jensen_shannon"
    """Between two features' profiles: the root of the Jensen-Shannon divergence, 1 - correlation, or that of their motifs, which tells
    shapes apart and not where they stand."""

    least_firings: int = Field(200, ge=20)
    """Features that fire less often on held-out documents have no profile to speak of and belong to no cluster."""

    bins: Literal["auto", "positions", "log"] = "auto"
    """Of a profile: one for every position, or bins that widen with the logarithm; `auto` takes positions where a typical feature fires
    often enough at each."""

    smoothing: float = Field(2.0, ge=0)
    """Every bin is drawn towards its feature's mean by so many firings; 0 leaves profiles as they were counted."""

    least_features: int = Field(5, ge=2)
    """Branches of fewer features are no cluster; their features are called scattered."""

    most_clusters: int = Field(20, ge=2, le=64)
    """The number of clusters is chosen by silhouette among 2 to this, and is 1 where none stands out from chance."""

    sample: int = Field(512, ge=32)
    """Chance and stability are measured on so many features at most, drawn by the seed; clusters hold all."""

    draws: int = Field(99, ge=19)
    """Of each kind of chance profiles; the least p-value is 1 / (draws + 1)."""

    bootstraps: int = Field(20, ge=2)
    """Draws of documents, with replacement, in which the clusters are looked for again."""

    least_cosine: float = Field(0.7, gt=0, le=1)
    """Features of two seeds are the same from this cosine of their decoder rows on."""

    examples: int = Field(3, ge=1, le=20)
    """Most telling features of each cluster, and contexts of each, that are listed."""

    seed: Seed = 0
    """Of everything drawn here."""
