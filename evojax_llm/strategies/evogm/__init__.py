"""EvoGM (arXiv 2605.29295)."""
