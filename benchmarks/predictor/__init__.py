"""Benchmarks of the predictor."""
