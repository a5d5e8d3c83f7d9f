"""Why a server ended, by what it wrote: the first reason, most telling first, whose words are in its log."""

from __future__ import annotations

from collections.abc import Sequence

LONGEST = 300
REASONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("gpu_in_use", ("is less than desired GPU memory utilization",)),
    (
        "out_of_memory",
        (
            "CUDA out of memory", "OutOfMemoryError", "HIP out of memory", "No available memory for the cache blocks",
            "is larger than the available KV cache memory",
            "larger than the maximum number of tokens that can be stored in KV cache",
            "Not enough memory", "CUDA error: out of memory",
        ),
    ),
    ("port_in_use", ("Address already in use", "address already in use")),
    ("unknown_option", ("unrecognized arguments", "invalid choice", "expected one argument", "no such option")),
    (
        "no_model",
        ("is not a local folder and is not a valid model identifier", "Repository Not Found"),
    ),
    ("refused", ("validation error for", "ValueError:", "AssertionError", "NotImplementedError")),
)  # fmt: skip
"""(reason, words): of vLLM 0.11 to 0.33 and SGLang 0.4.6 to 0.5.23, as their sources have them."""
HERE = ("gpu_in_use", "port_in_use", "no_model")
"""Reasons that no other configuration would cure."""
TELLING = ("Error", "error:", "Exception", "exception")


def reason_in(lines: Sequence[str]) -> tuple[str, str]:
    """(reason, the line that says so); `crashed` with the last line that tells of an error where no reason is known."""
    for reason, words in REASONS:
        for line in reversed(lines):
            if any(word in line for word in words):
                return reason, _short(line)
    told = [line for line in lines if any(word in line for word in TELLING)] or [line for line in lines if line.strip()]
    return "crashed", _short(told[-1]) if told else "the log is empty"


def _short(line: str) -> str:
    return " ".join(line.split())[-LONGEST:]
