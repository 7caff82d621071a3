"""Task files, prompts and scorers; nothing here needs jax."""
