"""The section `positions`: which features depend on position, and what of that is kept by hardening, by training and by other seeds."""
