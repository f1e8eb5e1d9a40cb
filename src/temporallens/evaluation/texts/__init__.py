"""Labelled texts, for probing: files of the user's own, sets of the hub, and sets that a registry ships."""
