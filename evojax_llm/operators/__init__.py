"""Pure functions on genomes: merge, mutation, selection, succession."""
