"""Attention over packed sequences: an abstract base, and one file a backend."""
