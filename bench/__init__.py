"""Measurements: one command, `bench/run.py`; what they gave is in README.md beside it."""
