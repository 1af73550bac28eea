"""Will this flight arrive 15 or more minutes late? A whole prediction service on a year of flights from New York.

Run it with `make demo`, or `python -m examples.flights --help`.
"""
