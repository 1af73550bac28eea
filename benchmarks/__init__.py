"""Measurements against limits: each prints a table and writes benchmarks/results/<topic>.json."""
