"""Evaluation: what a dictionary does on held-out documents, and what is known before any training. Tables in, tables out."""
