"""Tests of evojax_llm.operators."""
