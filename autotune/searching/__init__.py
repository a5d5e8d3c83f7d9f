"""Searches: one pool, or a service of several."""
