"""A deployment: one fully specified configuration, as `autotune predict` reads it and plans carry it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from cost_models.dispatch import BackendName
from cost_models.expert_kernels import ExpertKernelName
from cost_models.overlap import OverlapName
from cost_models.specs.base import Spec
from cost_models.specs.bounds import MOST_LAYERS
from cost_models.specs.layout import Layout
from cost_models.specs.precision import Dtype, KvDtype
from cost_models.specs.workload import Workload

MAX_BATCH = 1_000_000
MAX_RANKS = 20_000
"""Of one kind of parallelism, and instances."""
MAX_REDUNDANT = 4_096
MAX_STEP = 100_000_000
"""Tokens, rows or steps that a setting counts."""
LEAST_RATE_PER_S = 1e-6
"""One request in twelve days: less is nothing to serve."""
PoolRole = Literal["decode", "prefill", "serve"]

DEFAULT_MEMORY_FRACTION = 0.97
"""Safety margin: share of driver-reported memory a plan may fill."""


class EngineChoice(Spec):
    """Engine whose flags apply."""

    name: str
    version: str | None = None
    """Newest supported when absent."""


class CalibrationChoice(Spec):
    """Coefficients to price with, where they differ from the engine's own."""

    engine: str | None = None
    """Shipped calibration of another engine (published runs used forks and custom builds)."""
    file: str | None = None
    """A calibration document of your own."""

    @model_validator(mode="after")
    def _one_of(self) -> CalibrationChoice:
        if self.engine and self.file:
            raise ValueError("give either an engine or a file, not both")
        return self


class PrecisionChoice(Spec):
    """A named recipe with single dtypes changed."""

    recipe: str
    experts: Dtype | None = None
    shared_expert: Dtype | None = None
    dense_ffn: Dtype | None = None
    attention_in: Dtype | None = None
    q_b: Dtype | None = None
    o_proj: Dtype | None = None
    attention_compute: Literal["bf16", "fp8"] | None = None
    kv_b_expand: Dtype | None = None
    prefill_attention: Literal["bf16", "fp8"] | None = None
    kv_cache: KvDtype | None = None
    dispatch: Dtype | None = None
    combine: Dtype | None = None


class ExpertBalance(Spec):
    """How evenly tokens reach the ranks."""

    kind: Literal["none", "eplb", "static", "perfect"] = "none"
    """none: experts where they are; eplb: rebalanced while serving; static: placed once from recorded
    load; perfect: synthetic routing."""
    max_over_mean: float | None = Field(default=None, ge=1.0, le=1e6)
    """Measured busiest rank / mean, instead of the calibration's prior."""
    skew: float | None = Field(default=None, ge=1.0, le=1e6)
    """Busiest rank / mean of recorded loads (see `autotune place`), to which sampling noise is added; instead of the prior."""
    popularity_sigma: float | None = Field(default=None, ge=0.0, le=8)
    """Standard deviation of log popularity of single experts, instead of the calibration's; 0: uniform random routing."""
    window_steps: int = Field(default=1000, gt=0, le=MAX_STEP)
    interval_steps: int = Field(default=3000, gt=0, le=MAX_STEP)
    asynchronous: bool = False
    """Layers move one per step beside the forward pass."""


class Offload(Spec):
    """Weight offload: layer i is offloaded iff i % group_size >= group_size - num_in_group."""

    group_size: int = Field(gt=0, le=MAX_STEP)
    num_in_group: int = Field(default=1, gt=0, le=MAX_STEP)
    prefetch_step: int = Field(default=1, ge=0, le=MAX_STEP)
    """Layers copied ahead; 0 reads weights over the host link without copying (zero-copy, UVA)."""

    @model_validator(mode="after")
    def _within_group(self) -> Offload:
        if self.num_in_group > self.group_size:
            raise ValueError(f"num_in_group {self.num_in_group} exceeds group_size {self.group_size}")
        return self


class Chunks(Spec):
    """Chunk settings; 0 switches a chunk off."""

    moe_dp_tokens: int = Field(default=0, ge=0, le=MAX_STEP)
    activation_rows: int = Field(default=0, ge=0, le=MAX_STEP)
    output: int | None = Field(default=None, gt=0, le=MAX_STEP)
    """Outputs between two yields of an API process; none leaves the API processes out."""


class Pool(Spec):
    """One pool of identical engine instances."""

    hardware: str | None = None
    """Where it differs from the deployment's."""
    precision: str | PrecisionChoice | None = None
    """Where it differs from the deployment's."""
    tp: int = Field(default=1, gt=0, le=MAX_RANKS)
    dp: int = Field(default=1, gt=0, le=MAX_RANKS)
    ep: int = Field(default=1, gt=0, le=MAX_RANKS)
    pp: int = Field(default=1, gt=0, le=MAX_RANKS)
    dcp: int = Field(default=1, gt=0, le=MAX_RANKS)
    """Ranks of a tensor-parallel group that share the tokens of every sequence (decode context parallelism)."""
    moe_tp: int | None = Field(default=None, gt=0, le=MAX_RANKS)
    instances: int = Field(default=1, gt=0, le=MAX_RANKS)
    batch_per_dp_rank: int = Field(default=0, ge=0, le=MAX_BATCH)
    """Sequences decoding at once on each attention-DP rank; a decode pool needs it. Of a service's prefill pool, prompts that a
    rank takes in one step at most; 0 no limit but its tokens."""
    redundant_experts: int = Field(default=0, ge=0, le=MAX_REDUNDANT)
    all2all_backend: BackendName = "none"
    all2all_processors: int = Field(default=0, ge=0, le=1024)
    """SMs that dispatch and combine are told to use (SGLang's --deepep-config: num_sms); 0 as many as they take by themselves."""
    expert_kernel: ExpertKernelName = "auto"
    """Kernel of the routed experts, where the engine is told one (TensorRT-LLM's moe_config.backend); auto: the one that its
    public recipes choose for the GPU, the dtype and the layout."""
    overlap: OverlapName = "none"
    expert_balance: ExpertBalance = ExpertBalance()
    draft_tokens: int = Field(default=0, ge=0, le=16)
    drafter: str | None = None
    """Published drafter, or path to the folder or config.json of one; none: the model's own module drafts."""
    cuda_graph: bool = True
    cuda_graph_tokens: int | None = Field(default=None, gt=0, le=MAX_STEP)
    """Largest decode batch that is captured in a graph, in tokens; a larger one runs eagerly. None captures every step."""
    max_batched_tokens: int = Field(default=0, ge=0, le=MAX_STEP)
    """Token budget per attention-DP rank and step: what a prefill pool computes, and what buffers are sized for
    (0 sizes them for the batch)."""
    api_servers: int = Field(default=1, gt=0, le=MAX_RANKS)
    """API processes that share an instance's outputs (matters with chunks.output)."""
    memory_fraction: float | None = Field(default=None, gt=0, le=1)
    """Share of device memory the engine may use; none uses what is needed."""
    admission_interval_steps: int = Field(default=1, gt=0, le=MAX_STEP)
    """Decode steps between two looks for new prompts of an aggregated engine (SGLang --scheduler-recv-interval)."""
    absorbs_cut_prompts: bool = False
    """A step that holds a later piece of a prompt attends to all its prompts' latents without expanding them, with a slower
    kernel (SGLang --disable-chunked-prefix-cache)."""
    symmetric_memory: bool = False
    """All-reduces of tensor parallelism run in NCCL's symmetric memory (SGLang --enable-symm-mem)."""
    gather_prefill_steps: int = Field(default=0, ge=0, le=MAX_STEP)
    """Decode steps that prompts may wait so that all attention-DP ranks prefill together (TensorRT-LLM
    attention_dp_config timeout_iters with enable_balance); 0 never."""
    prefix_caching: bool = True
    """KV cache of sequences that ended or were preempted can be used again until it is written over (off with vLLM's
    --no-enable-prefix-caching, SGLang's --disable-radix-cache, which then sets whole answers aside); hits among requests are
    `workload.prefix_cache_hit_rate`."""
    offload: Offload | None = None
    chunks: Chunks = Chunks()
    flags: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Engine knobs by name (see `autotune engine show`), carried to export."""

    @model_validator(mode="after")
    def _layout_is_valid(self) -> Pool:
        _ = self.layout
        if self.ep > 1 and self.dp > 1 and self.all2all_backend == "none":
            raise ValueError("expert parallelism across DP ranks (dp > 1, ep > 1) needs an all2all_backend")
        if self.dp == 1 and self.all2all_backend != "none":
            raise ValueError("all2all_backend needs dp > 1; with dp 1 the experts' results join in the all-reduce")
        return self

    @property
    def layout(self) -> Layout:
        return Layout(tp=self.tp, dp=self.dp, ep=self.ep, pp=self.pp, dcp=self.dcp, moe_tp=self.moe_tp)


class Load(Spec):
    """What a service is sent: so many requests in flight, so many per second, or those of a trace."""

    concurrency: int | None = Field(default=None, gt=0, le=MAX_BATCH)
    """Closed loop: each finished request is replaced at once."""
    rate_per_s: float | None = Field(default=None, ge=LEAST_RATE_PER_S, le=1e6)
    """Open loop: Poisson arrivals, or those of the trace sped up or slowed down to this mean rate."""
    trace: str | None = None
    """Azure or Mooncake request trace; its lengths replace the workload's, its times hold unless one of the above is given."""
    requests: int | None = Field(default=None, gt=0, le=1_000_000)
    """Requests replayed, from an empty service on. Absent: all of a trace; of a closed loop ten per sequence in flight, at most
    100,000; a synthetic open loop is looked at in its steady state."""
    shortest: float = Field(default=1.0, gt=0, le=1)
    """Synthetic lengths are uniform between this share of the workload's and all of it."""
    warmed_up: bool = True
    """Whether the engines have served such requests before; else the first of these wait for kernels to be compiled, as in a
    benchmark whose client sends nothing ahead."""

    @model_validator(mode="after")
    def _one_loop(self) -> Load:
        if self.concurrency and self.rate_per_s:
            raise ValueError("give either concurrency (closed loop) or rate_per_s (open loop), not both")
        if not (self.concurrency or self.rate_per_s or self.trace):
            raise ValueError("give concurrency (closed loop), rate_per_s (open loop) or a trace")
        if not self.warmed_up and self.rate_per_s and not (self.trace or self.requests):
            raise ValueError("a steady state is warm: give how many requests a cold engine is sent")
        return self


class Deployment(Spec):
    """One configuration to predict; `autotune schema deployment` publishes the JSON schema."""

    format: Literal["autotune-deployment/1"] = "autotune-deployment/1"
    hardware: str
    """Catalogue name, or path to a hardware file."""
    model: str
    """Preset name, or path to a Hugging Face config.json."""
    layers: int | None = Field(default=None, gt=0, le=MOST_LAYERS)
    """Another depth of the same model."""
    dense_layers: int | None = Field(default=None, ge=0, le=MOST_LAYERS)
    """With `layers`: how many in front are dense; as the model has them when absent."""
    precision: str | PrecisionChoice
    engine: EngineChoice
    calibration: CalibrationChoice = CalibrationChoice()
    phase: PoolRole = "decode"
    workload: Workload
    pools: dict[PoolRole, Pool] = Field(min_length=1)
    """decode, prefill or both; `serve` is one aggregated pool that does both."""
    routers: int = Field(default=1, gt=0, le=MAX_RANKS)
    """Processes that deal the requests of a service with two pools to its engines, behind a proxy that takes turns. Each knows
    its own turns only, so several deal less evenly than one."""
    load: Load | None = None
    """What phase `serve` is sent."""

    @model_validator(mode="after")
    def _dense_layers_of_some_depth(self) -> Deployment:
        if self.dense_layers is not None and (self.layers is None or self.dense_layers > self.layers):
            raise ValueError(f"dense_layers {self.dense_layers} needs layers, of which it is a part")
        return self

    @model_validator(mode="after")
    def _phase_has_its_pool(self) -> Deployment:
        if self.phase == "serve":
            self._check_service()
            return self
        if self.phase not in self.pools:
            raise ValueError(f"phase {self.phase} has no pool; pools: {', '.join(self.pools)}")
        for phase, pool in self.pools.items():
            if phase == "decode" and not pool.batch_per_dp_rank:
                raise ValueError("a decode pool needs batch_per_dp_rank")
            if phase == "prefill" and not pool.max_batched_tokens:
                raise ValueError("a prefill pool needs max_batched_tokens (new tokens per attention-DP rank and step)")
        return self

    def _check_service(self) -> None:
        if self.load is None:
            raise ValueError("phase serve needs a load: concurrency, rate_per_s or a trace")
        if set(self.pools) not in ({"serve"}, {"prefill", "decode"}):
            found = ", ".join(self.pools)
            raise ValueError(f"a service is one pool `serve`, or the two pools `prefill` and `decode`; found {found}")

    @property
    def pool(self) -> Pool:
        """The pool that the phase names; a service's decoding one."""
        return self.pools[self.phase] if self.phase in self.pools else self.pools["decode"]

    def with_pool(self, phase: PoolRole, **changes: object) -> Deployment:
        """One pool with other values, which are not validated."""
        pool = self.pools[phase].model_copy(update=changes)
        return self.model_copy(update={"pools": {**self.pools, phase: pool}})

    def alone(self, phase: PoolRole, pool: Pool) -> Deployment:
        """One pool priced by itself in a phase, without the service around it."""
        return self.model_copy(update={"phase": phase, "pools": {phase: pool}, "load": None})
