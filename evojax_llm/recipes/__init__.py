"""Recipes: mergekit's YAML made into checkpoint folders; adapters extracted."""
