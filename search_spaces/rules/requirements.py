"""Options and variables that an engine needs to start, or to run what was priced: written into scripts, missed in commands."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from cost_models.releases import version_key
from search_spaces.rules.rule import Effect, Finding
from search_spaces.rules.subject import Subject

RUNNER = "--moe-runner-backend"
RUNNERS: dict[tuple[str, str], tuple[str, ...]] = {
    ("deepep", "nvfp4"): ("flashinfer_cutedsl",),
    ("deepep", "bf16"): ("deep_gemm",),
    ("flashinfer", "nvfp4"): ("flashinfer_cutlass", "flashinfer_cutedsl", "flashinfer_trtllm", "flashinfer_trtllm_routed"),
    ("flashinfer", "bf16"): ("flashinfer_cutlass", "flashinfer_trtllm", "flashinfer_trtllm_routed"),
    ("flashinfer", "fp8_block"): ("deep_gemm", "flashinfer_trtllm", "flashinfer_trtllm_routed"),
}
"""(SGLang's all-to-all, dtype of the experts) -> runners that stand behind it, ours first; `auto` finds none of them."""
TRANSCEIVER = "cache_transceiver_config.backend"
TRANSCEIVERS = ("DEFAULT", "NIXL", "UCX", "MOONCAKE", "MPI")
"""Ways of TensorRT-LLM to hand caches over, its own choice first."""
REMOTE_CODE = ("kimi",)
"""Beginnings of names of models whose tokenizer is code of the checkpoint."""


@dataclass(frozen=True, slots=True)
class Needed:
    """What a command must have: an option with one of some values (none for a switch), or a variable."""

    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.options or self.environment)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequirement:
    """What an engine needs under a condition."""

    name: str
    says: str
    source: str
    engines: tuple[str, ...]
    needs: Callable[[Subject], Needed]
    """Of the one row of a subject."""
    effect: Effect = "breaks"
    """What happens without it."""
    since: str | None = None

    def of(self, subject: Subject) -> Needed:
        """What is needed; nothing in another engine, or in an older version."""
        old = self.since is not None and version_key(subject.version) < version_key(self.since)
        return Needed() if subject.engine.name not in self.engines or old else self.needs(subject)

    def missing(self, subject: Subject) -> Finding | None:
        """What a command that was written lacks; none where nothing was written yet."""
        options = subject.options
        if options is None:
            return None
        needed = self.of(subject)
        lacking = [
            f"{name} {' or '.join(values)}".rstrip()
            for name, values in needed.options.items()
            if name not in options or (values and options[name] not in values)
        ]
        lacking += [f"{name}={value}" for name, value in needed.environment.items() if name not in subject.environment]
        return Finding(self.name, self.effect, f"{', '.join(lacking)} is missing: {self.says}", self.source) if lacking else None


def _runner(subject: Subject) -> Needed:
    choice = subject.choice()
    runners = RUNNERS.get((choice.value, subject.experts)) if choice else None
    return Needed({RUNNER: runners}) if runners else Needed()


def _nvfp4_dispatch(subject: Subject) -> Needed:
    choice = subject.choice()
    priced = choice is not None and choice.value == "deepep" and subject.recipe.dispatch == "nvfp4"
    return Needed(environment={"SGLANG_MOE_NVFP4_DISPATCH": "1"}) if priced else Needed()


def _vllm_nvfp4_dispatch(subject: Subject) -> Needed:
    choice = subject.choice()
    priced = choice is not None and choice.value == "deepep_low_latency" and subject.recipe.dispatch == "nvfp4"
    return Needed(environment={"VLLM_DEEPEPLL_NVFP4_DISPATCH": "1"}) if priced else Needed()


def remote_code(subject: Subject) -> bool:
    """Whether the checkpoint brings code that the engine must be allowed to run."""
    last = subject.model.checkpoints.get(subject.recipe.name, subject.model.name).rstrip("/").rsplit("/", 1)[-1]
    return any(name.lower().startswith(REMOTE_CODE) for name in (subject.model.name, last))


def _blocks(subject: Subject) -> Needed:
    """KV pages as long as the blocks that attention chooses."""
    sizes = {str(kind.page_tokens) for kind in subject.model.attentions if kind.page_tokens}
    return Needed({"--block-size": tuple(sizes)}) if sizes else Needed()


REQUIREMENTS = (
    EngineRequirement(
        name="pages_are_blocks",
        says="block-sparse attention needs KV pages of its block, and vLLM's default fails while the cache is set up",
        source="vLLM's MiniMax-M3 announcement and vllm-project/recipes MiniMaxAI/MiniMax-M3: --block-size 128 in every command",
        engines=("vllm",),
        effect="refused",
        needs=_blocks,
    ),
    EngineRequirement(
        name="moe_runner",
        says="SGLang finds no expert kernels behind this all-to-all by itself",
        source="sglang srt/layers/moe/ep_moe/layer.py:80-150 and :296 (assert False), srt/arg_groups/moe_hook.py:531 (0.5.23)",
        engines=("sglang",),
        needs=_runner,
    ),
    EngineRequirement(
        name="trust_remote_code",
        says="the checkpoint's tokenizer is code of its own",
        source="vllm-project/recipes pull 116 (traceback of Kimi K2); every public recipe of the model sets it",
        engines=("vllm", "vllm-ascend", "sglang"),
        effect="refused",
        needs=lambda s: Needed({"--trust-remote-code": ()}) if remote_code(s) else Needed(),
    ),
    EngineRequirement(
        name="trust_remote_code",
        says="the checkpoint's tokenizer is code of its own",
        source="vllm-project/recipes pull 116 (traceback of Kimi K2); llmapi/llm_args.py of TensorRT-LLM 1.3.0rc3",
        engines=("trtllm",),
        effect="refused",
        needs=lambda s: Needed({"trust_remote_code": ("true",)}) if remote_code(s) else Needed(),
    ),
    EngineRequirement(
        name="caches_are_handed_over",
        says="without it TensorRT-LLM's servers of a pair exchange no caches",
        source="_torch/pyexecutor/kv_cache_transceiver.py:36 (1.3.0rc3)",
        engines=("trtllm",),
        needs=lambda s: Needed({TRANSCEIVER: TRANSCEIVERS}) if s.role in ("prefill", "decode") else Needed(),
    ),
    EngineRequirement(
        name="prefill_without_overlapped_steps",
        says="public prefill servers run without the overlap scheduler, which was not tried with it",
        source="all 300 prefill pools of NVIDIA/srt-slurm recipes/trtllm (August 2026)",
        engines=("trtllm",),
        effect="unsure",
        needs=lambda s: Needed({"disable_overlap_scheduler": ("true",)}) if s.role == "prefill" else Needed(),
    ),
    EngineRequirement(
        name="nvfp4_dispatch",
        says="without it DeepEP dispatches BF16, where NVFP4 is priced",
        source="sglang srt/layers/moe/token_dispatcher/deepep.py (0.5.23)",
        engines=("sglang",),
        effect="ignored",
        needs=_nvfp4_dispatch,
    ),
    EngineRequirement(
        name="nvfp4_dispatch",
        says="without it DeepEP dispatches BF16, where NVFP4 is priced (with it, DeepEP must be its hybrid-ep branch)",
        source="vllm fused_moe/prepare_finalize/deepep_ll.py:180 (0.33.0)",
        engines=("vllm",),
        since="0.13",
        effect="ignored",
        needs=_vllm_nvfp4_dispatch,
    ),
)
