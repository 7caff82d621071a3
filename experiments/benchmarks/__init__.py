"""Measured results, and the peer they are measured against."""
