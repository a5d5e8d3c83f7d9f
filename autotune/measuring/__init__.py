"""Kernel microbenchmarks on the GPUs that are there; torch is imported only inside the functions that run on them."""
