"""TensorRT-LLM: caches take a share of what weights and a step of the whole token budget leave."""

from __future__ import annotations

from autotune.auditing.engine_memory.base import EngineMemory, Launched, Said
from autotune.predicting.step import held_memory


class TensorRtLlmMemory(EngineMemory):
    """_torch/pyexecutor/_util.py _cal_max_memory (1.3.0rc3): (total - peak of a step of max_num_tokens) x fraction."""

    def filled(self, launched: Launched, said: Said) -> Launched:
        if not said.free_fraction:
            return launched
        budget = max(launched.pool.max_batched_tokens, said.budget_tokens or 0)
        launched = launched.with_pool(max_batched_tokens=budget)
        kept = held_memory(launched.of_one()).beside_cache_bytes
        visible = launched.visible_bytes
        left = max(visible - kept, 0.0) * said.free_fraction
        return launched.with_pool(memory_fraction=min((kept + left) / visible, 1.0))
