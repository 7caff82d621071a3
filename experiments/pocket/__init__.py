"""Builds and measures the pocket population shipped in evojax_llm/pocket."""
