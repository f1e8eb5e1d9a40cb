"""Pictures: one module per picture, each with one function that takes data and returns a matplotlib Figure; `save` writes it."""
