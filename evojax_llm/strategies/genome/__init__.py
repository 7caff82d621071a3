"""GENOME and GENOME+ (arXiv 2503.01155)."""
