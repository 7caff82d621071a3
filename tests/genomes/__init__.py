"""Tests of evojax_llm.genomes."""
