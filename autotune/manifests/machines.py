"""Which hardware a file runs on, by the names that schedulers and clouds have for it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from autotune.manifests.source import mappings_in

KEYS = re.compile(
    r"(gpu[._-]?(product|type|model|family)|accelerator|instance-type|accelerator-type|gpu\.present|machine-type|compute-class)$",
    re.IGNORECASE,
)
"""Keys of node selectors, affinities and recipes whose value names an accelerator or a machine that has it."""
NAMES: tuple[tuple[re.Pattern[str], tuple[str, ...]], ...] = tuple(
    (re.compile(rf"(?<![a-z0-9])({pattern})(?![a-z0-9])", re.IGNORECASE), found)
    for pattern, found in (
        (r"vr(-?nvl72|200)|vera-?rubin(-?nvl72)?", ("vr-nvl72",)),
        (r"gb300(nvl72)?|gb300-nvl72|p6e-gb300\w*", ("gb300-nvl72",)),
        (r"gb200(nvl72)?|gb200-nvl72|p6e-gb200\w*|a4x-\w+", ("gb200-nvl72",)),
        (r"b300|p6-b300", ("hgx-b300",)),
        (r"b200|a4-highgpu", ("hgx-b200",)),
        (r"h200|p5en|p5e|a3-ultragpu", ("hgx-h200",)),
        (r"h100|p5|a3-(?:high|mega)gpu", ("hgx-h100",)),
        (r"h800", ("hgx-h800",)),
        (r"h20", ("hgx-h20",)),
        (r"mi355x?", ("mi355x",)),
        (r"mi325x?", ("mi325x",)),
        (r"mi300x", ("mi300x",)),
        (r"ascend-?910b2|910b2", ("ascend-910b2",)),
        (r"ascend-?910c|910c", ("ascend-910c",)),
    )
)
"""NVIDIA's gpu-feature-discovery products, GKE accelerators, AWS and Google machine types, srt-slurm's gpu_type."""


def named_hardware(text: str) -> tuple[str, ...]:
    """Catalogue names of the accelerator in a name; empty for others."""
    plain = text.replace("_", "-")
    return next((found for pattern, found in NAMES if pattern.search(plain)), ())


def hardware_in(data: Any) -> tuple[str, ...]:
    """What the node selectors, affinities and labels of a document name, each once."""
    return tuple(dict.fromkeys(name for text in _selected(data) for name in named_hardware(text)))


def _selected(data: Any) -> Iterator[str]:
    """Values of keys that name machines, anywhere in a document."""
    for found in mappings_in(data):
        if KEYS.search(str(found.get("key", ""))) and found.get("operator", "In") == "In":
            yield from (str(item) for item in found.get("values") or ())
        yield from (inside for key, inside in found.items() if KEYS.search(str(key)) and isinstance(inside, str))
