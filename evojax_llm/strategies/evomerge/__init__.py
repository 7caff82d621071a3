"""EvoMerge; see `algorithm`."""
