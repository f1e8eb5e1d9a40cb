"""Dictionaries: torch modules that turn activations and their positions into sparse codes and back. One file per arm."""
