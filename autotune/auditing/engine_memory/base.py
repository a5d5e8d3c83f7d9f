"""What every engine answers of its memory, and what they share: the pool by itself and a fraction of everything."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from autotune.documents.deployment import Deployment, Pool, PoolRole
from autotune.predicting.step import held_memory
from cost_models.catalog import load_hardware
from cost_models.releases import version_key
from search_spaces.loader import load_engine, resolve_version
from search_spaces.schema import EngineSpec


@dataclass(frozen=True, slots=True)
class Said:
    """What a command says of memory; none where it leaves that to the engine."""

    fraction: float | None = None
    free_fraction: float | None = None
    """kv_cache_config.free_gpu_memory_fraction (TensorRT-LLM): of what everything but caches leaves."""
    budget_tokens: int | None = None
    """--max-num-batched-tokens (vLLM), --chunked-prefill-size over all attention-DP ranks (SGLang)."""
    running: int | None = None
    """--max-running-requests over all attention-DP ranks (SGLang)."""
    longest_tokens: int | None = None
    """--max-model-len; the model's own longest context where absent."""
    as_long_as_fits: bool = False
    """--max-model-len auto: the engine takes the longest that fits."""
    aggregated: bool = True
    """The engine prefills as well as it decodes."""


@dataclass(frozen=True, slots=True)
class Launched:
    """A deployment on the release that runs it."""

    deployment: Deployment
    engine: EngineSpec
    version: str
    """A supported one."""

    @classmethod
    def of(cls, deployment: Deployment) -> Launched:
        engine = load_engine(deployment.engine.name)
        return cls(deployment, engine, resolve_version(engine, deployment.engine.version))

    @property
    def release(self) -> tuple[int, ...]:
        """The version as numbers, to compare."""
        return version_key(self.version)

    @property
    def pool(self) -> Pool:
        return self.deployment.pool

    @property
    def visible_bytes(self) -> float:
        """Of one GPU, as its driver reports it [B]."""
        return load_hardware(self.pool.hardware or self.deployment.hardware).gpu.hbm_visible_bytes.value

    def default(self, knob: str) -> float | None:
        """What the release takes for a number that nothing sets."""
        found = self.engine.knob(knob)
        value = found.default(self.version) if found else None
        return None if value is None else float(value)

    def with_pool(self, **changes: object) -> Launched:
        """The same with other fields of the engine's pool."""
        phase = self.deployment.phase
        own: PoolRole = phase if phase in self.deployment.pools else "decode"
        return Launched(self.deployment.with_pool(own, **changes), self.engine, self.version)

    def alone(self) -> Deployment:
        """The engine's pool by itself: a service's as it decodes."""
        if self.deployment.phase != "serve":
            return self.deployment
        sequences = max(self.pool.batch_per_dp_rank, 1)
        return self.deployment.alone("decode", self.pool.model_copy(update={"batch_per_dp_rank": sequences}))

    def of_one(self) -> Deployment:
        """That with one sequence and buffers for all that it may run: no logits but its own lie beside the cache."""
        tokens = self.pool.max_batched_tokens or self.pool.batch_per_dp_rank * (1 + self.pool.draft_tokens)
        return self.with_pool(batch_per_dp_rank=1, max_batched_tokens=tokens).alone()

    def covering(self, fraction: float, beside: tuple[str, ...], less_bytes: float = 0.0) -> Launched:
        """A memory fraction of everything, given one that leaves some lines out, which lie beside it as far as there is memory.

        less_bytes : of the given fraction's memory, what no line stands for.
        """
        lines = held_memory(self.of_one()).bytes_by_line if beside else {}
        more = sum(held for name, held in lines.items() if name in beside)
        covered = min(max(fraction + (more - less_bytes) / self.visible_bytes, 0.01), 1.0)
        return self.with_pool(memory_fraction=covered)


class EngineMemory(ABC):
    """What one engine does with its memory when it starts. Without state."""

    @abstractmethod
    def filled(self, launched: Launched, said: Said) -> Launched:
        """It with the share of everything that the engine may fill, and with buffers as it sizes them when it starts."""

    def too_long(self, launched: Launched, said: Said) -> str | None:
        """Why the engine does not start with the longest sequence that it is to take; none where it does."""
        del launched, said
        return None

    def unsure(self, launched: Launched, said: Said) -> str | None:
        """That the cache may be smaller than priced, and by how much; none where nothing suggests it."""
        del launched, said
        return None
