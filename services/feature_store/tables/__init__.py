"""Tables of any size on their way: decoded, checked and digested batch by batch, in memory or on disk."""
