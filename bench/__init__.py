"""Benchmarks: ``fpfast bench`` from the root of the source tree."""
