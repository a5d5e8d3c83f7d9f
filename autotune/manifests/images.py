"""Which engine and version a container image holds, where its tag says so."""

from __future__ import annotations

import re

VERSION = r"v?(\d+\.\d+(?:\.\d+)?(?:rc\d+)?(?:\.?post\d+)?)"
OWN = re.compile(
    rf"(?:^|/)(?:vllm-openai(?:-rocm)?|vllm-ascend|lmsysorg/sglang|sglang|tensorrt-llm/release):{VERSION}(?!\d)", re.IGNORECASE
)
"""Images of the engines themselves, whose tags are their versions."""
INSIDE = re.compile(rf"(?:vllm|sglang|trtllm|tensorrt-?llm)[-_]v?{VERSION}(?!\d)", re.IGNORECASE)
"""Tags of others that carry the engine's (rocm/vllm:rocm6.4.1_vllm_0.10.1_...)."""
SERVES = re.compile(r"(?:^|/)vllm-openai(?:-rocm)?(?:[:@]|$)")
"""Images whose entry point is `vllm serve`."""


def engine_version(image: str | None) -> str | None:
    """The engine's version; none for images that do not say it: `latest`, digests, distributions with a version of their own."""
    if not image:
        return None
    _, _, tag = image.rpartition("/")[2].partition(":")
    found = OWN.search(image) or INSIDE.search(tag)
    return found.group(1) if found else None


def is_server(image: str | None) -> bool:
    """Whether the image by itself runs `vllm serve`."""
    return bool(image and SERVES.search(image))
