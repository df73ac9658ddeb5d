"""Measurements: each module prints a table of ours beside the ordinary way, run as python -m benchmarks.NAME."""
