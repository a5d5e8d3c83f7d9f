"""Unit constants. SI everywhere inside; friendly units only at the edge.

Rates and vendor capacities are decimal (1 GB/s = 1e9 B/s); only capacities that a driver
reports are binary (1 MiB = 2**20 B).
"""

from __future__ import annotations

US = 1e-6
MS = 1e-3
KB = 1e3
MB = 1e6
GB = 1e9
TB = 1e12
MIB = 2**20
GIB = 2**30
TFLOPS = 1e12
BITS_PER_BYTE = 8
