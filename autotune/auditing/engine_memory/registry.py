"""Engines by the options that they take: what a command's memory comes to on each."""

from __future__ import annotations

from collections.abc import Mapping

from autotune.auditing.engine_memory.base import EngineMemory, Launched, Said
from autotune.auditing.engine_memory.sglang import SglangMemory
from autotune.auditing.engine_memory.trtllm import TensorRtLlmMemory
from autotune.auditing.engine_memory.vllm import VllmMemory
from autotune.documents.deployment import Deployment

BY_COMMAND_LINE: Mapping[str, EngineMemory] = {"vllm": VllmMemory(), "sglang": SglangMemory(), "trtllm": TensorRtLlmMemory()}
"""`EngineSpec.command_line` -> its memory; vllm-ascend is a plugin of vLLM and takes its options."""


def in_engine_memory(deployment: Deployment, said: Said) -> Deployment:
    """The deployment with the memory that its engine may fill, and with buffers as the engine sizes them when it starts."""
    launched = Launched.of(deployment)
    return memory_of(launched).filled(launched, said).deployment


def too_long(deployment: Deployment, said: Said) -> str | None:
    """Why the engine does not start with its longest sequence; none where it does."""
    launched = Launched.of(deployment)
    return memory_of(launched).too_long(launched, said)


def unsure(deployment: Deployment, said: Said) -> str | None:
    """That the cache may be smaller than priced; none where nothing suggests it."""
    launched = Launched.of(deployment)
    return memory_of(launched).unsure(launched, said)


def memory_of(launched: Launched) -> EngineMemory:
    """Raises KeyError for an engine whose options are not known, of which no command was read."""
    return BY_COMMAND_LINE[str(launched.engine.command_line)]
