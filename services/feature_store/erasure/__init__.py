"""Forgetting entities."""
