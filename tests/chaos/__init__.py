"""Long versions of what `make test` shows shortly: `make chaos`. Not collected by default."""
