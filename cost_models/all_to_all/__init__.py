"""Backends that carry tokens to the ranks of their experts and back: one file each, all in registry.py."""
