"""Rows and point-in-time joins: which rows a query means, and which row each spine row sees."""
