"""Genomes stacked on a leading axis P: layout, keys, leaves and lineage."""
