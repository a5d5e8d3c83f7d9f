"""Releases of engines, in order."""

from __future__ import annotations

import functools
import re

CANDIDATE = re.compile(r"\d+rc(\d+)")


@functools.cache
def version_key(version: str) -> tuple[int, ...]:
    """'0.33' -> (0, 33); post-releases compare by their numbers, candidates too: 1.3.0rc9 < 1.3.0rc29 < 1.3.0."""
    found: list[int] = []
    for part in version.replace("post", "").split("."):
        if part.isdigit():
            found.append(int(part))
        elif candidate := CANDIDATE.fullmatch(part):
            found += [-1, int(candidate.group(1))]
    return tuple(found)


def up_to(version: str, last: str) -> bool:
    """Whether a version is of a release or older than it; 0.19.1 is of 0.19."""
    bound = version_key(last)
    return version_key(version)[: len(bound)] <= bound
