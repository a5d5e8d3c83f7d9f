"""What is installed, for provenance."""

from __future__ import annotations

import functools
from importlib import metadata


@functools.cache
def installed_version(package: str) -> str:
    """Version of a distribution, or that there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
