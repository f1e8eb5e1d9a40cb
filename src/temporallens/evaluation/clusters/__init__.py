"""The section `clusters`: features grouped by when in the sequence they fire."""
