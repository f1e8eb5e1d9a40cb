"""How much of a dictionary's support is known before its codes are read."""
