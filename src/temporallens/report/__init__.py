"""The page that a person reads: one self-contained HTML file, written from the results, the pictures and the study file."""
