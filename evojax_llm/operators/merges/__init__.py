"""Merges (crossover): one child from k parents; `registry` lists them all."""
