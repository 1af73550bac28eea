"""How fast the feature store is, and how much memory it takes: one module per topic."""
