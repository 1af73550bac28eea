"""What exists: groups and views in versions, what is said about them, and what uses what."""
