"""Benchmarks: ``python -m bench.run --suite cpu-engine`` from the root of the source tree."""
