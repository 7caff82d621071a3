"""The command lines: `evojax-llm NAME`, and in a clone experiments.NAME."""
