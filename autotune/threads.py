"""Threads that libraries start by themselves."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

BLAS_THREADS = "OPENBLAS_NUM_THREADS"


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """numpy that is loaded meanwhile, here or by a process that is started, multiplies with one thread.

    Otherwise OpenBLAS starts one per core, and they spin, with nothing large to multiply. The variable is gone afterwards: what
    is started later must not inherit it. A value that is set already is kept.
    """
    if BLAS_THREADS in os.environ:
        yield
        return
    os.environ[BLAS_THREADS] = "1"
    try:
        yield
    finally:
        os.environ.pop(BLAS_THREADS, None)
