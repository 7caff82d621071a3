"""A small population of models that see, and the command that builds it."""
