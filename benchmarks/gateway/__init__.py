"""Systems behind the same gateway: what a caller sees of each."""
