"""Experts of a real model, and searches over them."""
