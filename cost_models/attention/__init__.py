"""Attention kinds, one module each: what they store, compute, keep of a sequence and need calibrated."""
