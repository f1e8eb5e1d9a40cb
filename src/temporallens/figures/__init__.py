"""Pictures: one module per picture, each with one function that takes data and returns a matplotlib Figure; `save` writes it."""

from temporallens.figures.beforehand import draw_beforehand
from temporallens.figures.bits import draw_bits
from temporallens.figures.cluster_patterns import draw_cluster_patterns
from temporallens.figures.comparative import draw_comparative_analysis
from temporallens.figures.fidelity import draw_fidelity
from temporallens.figures.frontier import draw_frontier
from temporallens.figures.masks import draw_masks, draw_two_cases
from temporallens.figures.position_analysis import draw_position_analysis
from temporallens.figures.position_weights import draw_position_weights
from temporallens.figures.save import save
from temporallens.figures.scan import draw_scan
from temporallens.figures.sparsity import draw_sparsity_analysis
from temporallens.figures.strictness import draw_mask_strictness
from temporallens.figures.temporal_clustering import draw_temporal_clustering

__all__ = [
    "draw_beforehand",
    "draw_bits",
    "draw_cluster_patterns",
    "draw_comparative_analysis",
    "draw_fidelity",
    "draw_frontier",
    "draw_mask_strictness",
    "draw_masks",
    "draw_position_analysis",
    "draw_position_weights",
    "draw_scan",
    "draw_sparsity_analysis",
    "draw_temporal_clustering",
    "draw_two_cases",
    "save",
]
