"""Commands, systems, benchmarks, and how the pocket population is built."""
