"""How each engine family schedules: when a prompt may start, what a step may hold and in which order.

A policy is a value without state; the replay asks it. Facts are those of the engines' sources and documentation, by
generation: nothing here was fitted.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from autotune.errors import ProblemError

Dealing = Literal["balanced", "by_tokens", "round_robin", "random"]
FirstToken = Literal["when_composed", "at_entry", "with_first_step", "by_first_step"]
"""When a client of a disaggregated service sees its first token: when the step that the sequence enters is composed, ahead of
the steps before it; when the sequence enters the decode batch; with what the first decode step returns; or as what that step
computes (the prefill's token is computed again)."""


@dataclass(frozen=True, slots=True)
class Policy:
    """One generation of an engine's scheduler."""

    name: str
    runs_ahead: int
    """Steps that are composed before the running one has ended: a newcomer waits for one more step each."""
    mixes: bool
    """Prompts join decode steps, in which every running sequence gains its token; else they get steps of their own."""
    cuts: bool
    """A prompt that does not fit the budget is cut; else it waits for a step that it fits in."""
    deals: Dealing
    """Among the attention-DP ranks of an aggregated engine, when a request reaches it."""
    deals_prefill: Dealing
    """The same in the prefill pool of a disaggregated service."""
    deals_decode: Dealing
    """And in its decode pool."""
    reserve: float
    """Share of the longest answer whose KV cache is set aside when a prompt is let in [-]; what outgrows it preempts."""
    slot_first: bool
    """Disaggregated: a prompt waits for its decode slot before it is prefilled."""
    first_seen: FirstToken
    handover_steps: int
    """Decode steps from the arrival of a KV cache until the decode side looks, beyond those it runs ahead."""
    default_tokens: int
    """Token budget of a step where none is set."""
    captured_tokens: int = 0
    """Largest step with prompts that is captured piece by piece; larger ones are launched eagerly."""
    captured_of: tuple[tuple[str, int], ...] = ()
    """The same of architectures for which the engine raises it."""
    gathers: bool = False
    """Attention-DP ranks may wait until all have a prompt."""
    polls: bool = False
    """New requests may be looked for every so many steps only; a step of prompts starts the count again with a look."""
    ahead_apart: int = 0
    """As `runs_ahead`, of an engine that only prefills."""
    entry_stalls: bool = False
    """Disaggregated: an attention-DP rank that sequences enter decodes nothing in that step."""
    host_keeps: bool = False
    """Disaggregated: a preempted sequence's KV cache waits in the host's memory; else the decode engine computes it again."""
    keeps_freed: bool = False
    """With prefix caching, what a preempted sequence held can be used again until others have written over it, its end first."""
    block_tokens: int = 1
    """Tokens of the KV cache that are handed out at once."""
    reserve_uncached: float | None = None
    """As `reserve`, of an engine that keeps no prefixes, where that changes it [-]."""
    results_wait: bool = False
    """What a step of prompts computed is looked at once the next one has been launched, which for eager steps takes a while."""

    def without_prefix_cache(self) -> Policy:
        """What an engine does that keeps no prefixes."""
        return self if self.reserve_uncached is None else dataclasses.replace(self, reserve=self.reserve_uncached)

    def padded(self, sequences: int) -> int:
        """The captured batch that `sequences` of a rank decode in: 1, 2, 4, then multiples of 8, from 256 on of 16."""
        if sequences <= 4:
            return 1 << max(sequences - 1, 0).bit_length()
        multiple = 8 if sequences <= 256 else 16
        return -(-sequences // multiple) * multiple

    def captured(self, architecture: str) -> int:
        """Largest step with prompts that is captured, for a model."""
        return dict(self.captured_of).get(architecture, self.captured_tokens)

    def budget(self, tokens: float, decoding: float) -> float:
        """Prompt tokens that a rank's step may hold beside `decoding` sequences: where prompts join them, they share it."""
        return tokens - decoding if self.mixes else tokens

    def piece(self, left: float, budget: float, alone: bool) -> float:
        """Tokens of the next waiting prompt, `left` of it uncomputed, that the step takes; 0 none.

        alone : nothing else was taken on its rank. A prompt beyond the budget of an engine that cuts none goes alone: it
        would not start with so small a budget, so this prices what it would have to be told.
        """
        if self.cuts:
            return min(left, budget)
        return left if left <= budget or alone else 0.0


VLLM_V1 = Policy(
    name="vllm-v1",
    runs_ahead=0,
    mixes=True,
    cuts=True,
    deals="balanced",
    deals_prefill="balanced",
    deals_decode="balanced",
    reserve=0.0,
    slot_first=False,
    first_seen="by_first_step",
    handover_steps=0,
    default_tokens=8192,
    captured_tokens=512,
    keeps_freed=True,  # v1/core/block_pool.py hands out the blocks that were freed first
    block_tokens=16,
    captured_of=(("GptOssForCausalLM", 1024),),  # GptOssForCausalLMConfig of vllm model_executor/models/config.py, 0.24
)
VLLM_V1_ASYNC = dataclasses.replace(VLLM_V1, name="vllm-v1-async", runs_ahead=1, ahead_apart=1)
SGLANG = Policy(
    name="sglang-overlap",
    runs_ahead=1,
    mixes=False,
    cuts=True,
    deals="round_robin",
    deals_prefill="random",  # by the bootstrap room, a random number, unless --load-balance-method says otherwise
    deals_decode="round_robin",
    reserve=0.1,  # new_token_ratio once it has decayed
    reserve_uncached=1.0,  # add_one_req_ignore_eos: benchmarks ask for whole answers and switch the cache off (0.5.10 to 0.5.18)
    slot_first=True,
    first_seen="at_entry",
    handover_steps=0,
    host_keeps=True,  # retracted sequences of disaggregation/decode.py
    entry_stalls=True,  # a batch of prefilled sequences is a step of its own (disaggregation/decode.py get_new_prebuilt_batch)
    default_tokens=16384,
    polls=True,
    ahead_apart=1,
    results_wait=True,  # event_loop_overlap and event_loop_overlap_disagg_prefill, 0.5.5 to 0.5.9
)
TENSORRT_LLM = Policy(
    name="tensorrt-llm-inflight",
    runs_ahead=1,
    mixes=True,
    cuts=False,
    deals="by_tokens",
    deals_prefill="by_tokens",
    deals_decode="by_tokens",
    reserve=1.0,  # GUARANTEED_NO_EVICT
    slot_first=False,
    first_seen="when_composed",  # _handle_first_token_response of pyexecutor/py_executor.py, before the forward step
    handover_steps=1,  # one iteration takes a request in and asks for its cache, the next finds it there
    default_tokens=8192,
    block_tokens=32,
    gathers=True,
)
TENSORRT_LLM_OLD = dataclasses.replace(TENSORRT_LLM, name="tensorrt-llm-inflight-0", first_seen="with_first_step")
POLICIES = {policy.name: policy for policy in (VLLM_V1, VLLM_V1_ASYNC, SGLANG, TENSORRT_LLM, TENSORRT_LLM_OLD)}

GENERATIONS: dict[str, tuple[tuple[tuple[int, ...], Policy], ...]] = {
    "vllm": (((0, 14), VLLM_V1_ASYNC), ((0,), VLLM_V1)),  # asynchronous scheduling is the default since 0.14
    "vllm-ascend": (((0,), VLLM_V1),),
    "sglang": (((0,), SGLANG),),
    "trtllm": (((1,), TENSORRT_LLM), ((0,), TENSORRT_LLM_OLD)),
}
"""Engine -> (first version, policy), newest first."""


def policy_of(engine: str, version: str) -> Policy:
    """The policy of an engine version; raises ProblemError for an engine whose scheduler is not modelled."""
    if engine not in GENERATIONS:
        raise ProblemError(f"the scheduler of {engine} is not modelled; services are predicted for {', '.join(GENERATIONS)}")
    found = tuple(int(part) for part in version.split(".") if part.isdigit())
    return next(policy for since, policy in GENERATIONS[engine] if found >= since)
