"""The feature store: registry, offline rows as ordered commits, as-of joins, online vectors and reingested logs."""
