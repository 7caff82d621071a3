"""The algorithms of evosax."""
