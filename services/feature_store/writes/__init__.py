"""Rows on their way into a commit: checked, held against expectations, published."""
