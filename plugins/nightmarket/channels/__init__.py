"""Messages out: one module per channel, all of the same shape."""
