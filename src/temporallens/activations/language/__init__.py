"""Activations of language models: texts, tokens, models that are read block by block, and the harvest."""
