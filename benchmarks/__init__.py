"""Measurements: each module prints a table that compares datxai with a reference; run python -m benchmarks.NAME."""
