"""What a replay needs to know of a service: the times and limits of its pools, front end and hand-over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from autotune.serving.policies import Policy

UNLIMITED_SLOTS = 2**40


@dataclass(frozen=True, slots=True)
class PoolModel:
    """Identical engines ("workers"), each of attention-DP ranks that step together."""

    decode_s: Callable[[int], float]
    """Sequences of the busiest rank -> seconds of a step that only decodes."""
    prompt_s: Callable[[float, float, float, int], float]
    """(new tokens of the busiest rank, mean per rank, keys its prompt tokens attend to, sequences that decode on the busiest
    rank in the same step) -> seconds of a step that holds prompts. Tokens include those of sequences that decode in it."""
    workers: int = 1
    ranks: int = 1
    slots: int = UNLIMITED_SLOTS
    """Sequences of one rank at most: that decode, and prompts begun; of a pool that only prefills, prompts of one step."""
    budget_tokens: float = 8192.0
    """Of one rank and step."""
    kv_tokens: float = float("inf")
    """That the KV cache of one rank holds."""
    tokens_per_step: float = 1.0
    """That a running sequence gains: above one with drafts."""
    look_steps: int = 1
    """The engine looks for new requests every so many steps."""
    gather_steps: int = 0
    """Steps that prompts may wait until every rank has one."""
    keeps_freed: bool = False
    """What a preempted sequence held can be used again until others have written over it, its end first."""
    cut_keys: float = 1.0
    """How much longer a rank's prompts attend in a step that holds a later piece of one of them."""
    first_cut_s: float = 0.0
    """What the first step that holds a later piece of a prompt takes more, before it is launched: its kernel is compiled; 0 in
    an engine that has run one before [s]."""
    launch_s: float = 0.0
    """What the engine's process is busy launching an eager step of prompts at most; infinite where it waits for the GPU in
    every layer, so for the whole step [s]."""


@dataclass(frozen=True, slots=True)
class Frontend:
    """The processes that take requests in: each tokenises one prompt after the other; those of an engine that decodes stream
    its answers, and where it also prefills they are the same."""

    servers: int = 1
    """Processes, dealt requests in turn."""

    fixed_s: float = 0.0
    """On a request's way in and out, whatever else goes on [s]."""
    prompt_s: float = 0.0
    """Of each prompt, one after the other [s]."""
    token_s: float = 0.0
    """Of each token of a prompt, one after the other [s]."""
    output_s: float = 0.0
    """Of each token of an answer, shared out over the processes of its engine: time that the prompts of an aggregated engine do
    not get, and that what a step returns waits for [s]."""


@dataclass(frozen=True, slots=True)
class Handover:
    """A prompt's KV cache on its way from a prefill to a decode rank."""

    start_s: float = 0.0
    token_s: float = 0.0
    """Of the receiving GPU's link, by prompt token [s]."""
    sent_token_s: float = 0.0
    """Of the sending GPU's link, by prompt token [s]."""


@dataclass(frozen=True, slots=True)
class ServiceModel:
    """One service: an aggregated engine, or a pool that prefills and one that decodes."""

    policy: Policy
    decode: PoolModel
    """The engine that does both, where there is no prefill pool."""
    prefill: PoolModel | None = None
    frontend: Frontend = Frontend()
    handover: Handover = Handover()
    routers: int = 1
    """Processes that deal requests to the workers of a pool, behind a proxy that takes turns; each takes turns on its own, in an
    order of its own."""

    @property
    def slots(self) -> int:
        """Sequences that decode at once at most."""
        pool = self.decode
        return min(pool.slots, UNLIMITED_SLOTS) * pool.ranks * pool.workers
