"""Pictures: one module per picture, each with one function that takes data and returns a matplotlib Figure; `save` writes it."""

from temporallens.figures.position_analysis import draw_position_analysis
from temporallens.figures.save import save
from temporallens.figures.scan import draw_scan

__all__ = ["draw_position_analysis", "draw_scan", "save"]
