"""The prediction log as feature groups."""
