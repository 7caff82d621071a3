"""The Gemma family for one member: forward pass, folders in and out."""
