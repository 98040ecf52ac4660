"""Data in: one module per platform, all of the same shape (constants, client, streams, check)."""
