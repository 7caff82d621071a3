"""Decoder-only models for one member: forward pass, folders in and out."""
