"""Benchmarks: `python -m benchmarks` measures every ratio of `docs/performance.md` in one run."""
