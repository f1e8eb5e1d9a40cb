"""Activations with their positions: corpora, models, clocks, harvesting, the store on disk, and the shuffling loader."""
