"""Tools of the house: is it reliable, is it right, and what the documentation prints (`python -m tools.NAME`)."""
