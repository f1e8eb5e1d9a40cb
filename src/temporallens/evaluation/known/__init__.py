"""Scores against what is known by construction: the features of worlds and the fields of records."""
