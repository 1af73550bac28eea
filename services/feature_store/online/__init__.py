"""The online store: the latest row per key, in LMDB or in a Redis cluster, who feeds it, and what it answers."""
