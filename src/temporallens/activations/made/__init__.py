"""Activations that are made, so that what a dictionary should find is known: worlds of sparse features, and records."""
