"""Tests of evojax_llm.strategies."""
