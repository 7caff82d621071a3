"""Compiled programs that answer prompts for a population."""
