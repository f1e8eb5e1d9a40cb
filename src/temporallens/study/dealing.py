"""Which dictionaries of one store learn side by side, and in which of several processes: what a run does and what a plan reckons with."""

import math

TOGETHER = 16
"""Dictionaries that are trained side by side at most: it bounds the memory, and what an interruption can lose."""


def divided(numbers: list[int], count: int) -> list[list[int]]:
    """Parts of at most `TOGETHER`, as many for each of so many processes where all can have one. The seeds of an arm follow each other, so
    parts of every so manieth dictionary take about as long."""
    each = count if len(numbers) >= count else 1
    parts = each * math.ceil(len(numbers) / (each * TOGETHER))
    return [numbers[first::parts] for first in range(parts)]
