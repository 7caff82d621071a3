"""Tests of evojax_llm.population."""
