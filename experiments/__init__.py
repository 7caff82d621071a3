"""Command-line programs and the published systems, run from a clone."""
