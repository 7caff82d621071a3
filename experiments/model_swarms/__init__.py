"""Model Swarms."""
