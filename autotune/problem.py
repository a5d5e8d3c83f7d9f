"""The search problem: what people ask, and the same with every default filled in and named."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from autotune.deployment import CalibrationChoice, Phase
from autotune.errors import ProblemError
from autotune.predicting import DEFAULT_MEMORY_FRACTION, resolve_calibration
from cost_models import catalog
from cost_models.calibration import Calibration
from cost_models.errors import MissingFactError
from cost_models.machine import Machine
from cost_models.specs.base import Spec
from cost_models.specs.hardware import HardwareSpec
from cost_models.specs.model import ModelSpec
from cost_models.specs.precision import PrecisionRecipe
from cost_models.specs.workload import Workload
from search_spaces.loader import load_engine, resolve_version
from search_spaces.schema import EngineSpec

Objective = Literal["tokens_per_s_per_gpu", "tokens_per_s", "tpot", "ttft"]
Target = Literal["decode", "prefill"]

RECIPE_PREFERENCE = ("nvfp4", "fp8-block", "mxfp4", "int8", "bf16")
DEFAULT_MODEL = "deepseek-v3"
DEFAULT_LENGTH_TOKENS = 2000
DEFAULT_TPOT_S = 0.1
DEFAULT_TTFT_S = 3.0
MAX_GPUS = 20_000


class Problem(Spec):
    """What `autotune search` is asked; a YAML problem file has the same fields."""

    hardware: str
    model: str = DEFAULT_MODEL
    target: Target = "decode"
    precision: str | None = None
    """Best recipe that the hardware has kernels for when absent."""
    engine: str | None = None
    """vLLM (vLLM-Ascend on Ascend) when absent."""
    engine_version: str | None = None
    calibration: CalibrationChoice = CalibrationChoice()
    workload: Workload = Workload(isl_tokens=DEFAULT_LENGTH_TOKENS, osl_tokens=DEFAULT_LENGTH_TOKENS)
    gpus: int | None = Field(default=None, gt=0, le=MAX_GPUS)
    """GPU budget; one scale-up domain (or the whole fixed cluster) when absent."""
    objective: Objective = "tokens_per_s_per_gpu"
    tpot_limit_s: float = Field(default=DEFAULT_TPOT_S, gt=0, le=60)
    ttft_limit_s: float = Field(default=DEFAULT_TTFT_S, gt=0, le=3600)
    """Prefill: all steps of one prompt, when nothing waits."""
    min_concurrency: int = Field(default=0, ge=0)
    """Sequences that must decode at once over all instances."""
    min_tokens_per_s: float = Field(default=0.0, ge=0)
    """Output tokens per second that all instances must reach together."""
    memory_fraction: float = Field(default=DEFAULT_MEMORY_FRACTION, gt=0, le=1)
    """Share of driver-reported memory that a plan may fill (safety margin)."""
    top_k: int = Field(default=3, gt=0, le=20)
    trials: int = Field(default=120, ge=0, le=1_000_000)
    """Flag trials for each chosen layout."""
    seed: int = 0
    storage: str | None = None
    """Optuna storage URL; a study found there is resumed."""


@dataclass(frozen=True, slots=True)
class ResolvedProblem:
    """A problem with its documents loaded and its defaults named."""

    problem: Problem
    machine: Machine
    engine: EngineSpec
    version: str
    gpus: int
    assumed: tuple[str, ...]
    pool: Phase = "decode"
    """Which pool is planned; `serve` is an aggregated one."""

    @property
    def phase(self) -> Literal["decode", "prefill"]:
        """What the pool's steps mainly compute."""
        return "prefill" if self.pool == "prefill" else "decode"

    @property
    def hardware(self) -> HardwareSpec:
        return self.machine.hardware

    @property
    def model(self) -> ModelSpec:
        return self.machine.model

    @property
    def latency_limit_s(self) -> float:
        """Limit on the time per output token (decode) or of one prompt (prefill)."""
        return self.problem.tpot_limit_s if self.phase == "decode" else self.problem.ttft_limit_s

    @property
    def memory_limit_bytes(self) -> float:
        return self.hardware.gpu.hbm_visible_bytes.value * self.problem.memory_fraction


def resolve_problem(problem: Problem) -> ResolvedProblem:
    """Load documents and fill defaults; raises AutotuneError with one clear message."""
    hardware = catalog.load_hardware(problem.hardware)
    model = catalog.load_model(problem.model)
    engine = load_engine(problem.engine or default_engine(hardware))
    if hardware.gpu.vendor not in engine.vendors:
        raise ProblemError(
            f"{engine.name} does not run on {hardware.gpu.vendor} {hardware.gpu.name}; use {default_engine(hardware)}"
        )
    version = resolve_version(engine, problem.engine_version)
    calibration = resolve_calibration(problem.calibration, hardware.gpu.name, engine.calibration_engine)
    recipe = choose_recipe(problem.precision, model, hardware, calibration)
    gpus = problem.gpus or hardware.default_gpus
    _check_sizes(problem, hardware, model, gpus)
    return ResolvedProblem(
        problem=problem,
        machine=Machine(model, hardware, recipe, calibration),
        engine=engine,
        version=version,
        gpus=gpus,
        assumed=_assumed(problem, engine, version, recipe, gpus),
        pool=problem.target,
    )


def default_engine(hardware: HardwareSpec) -> str:
    """The engine taken when none is named."""
    return "vllm" if hardware.gpu.vendor == "nvidia" else "vllm-ascend"


def choose_recipe(name: str | None, model: ModelSpec, hardware: HardwareSpec, calibration: Calibration) -> PrecisionRecipe:
    """The named recipe, or the best one with a checkpoint, tensor cores and coefficients.

    Raises ProblemError naming what is missing for a recipe that cannot run.
    """
    if name is not None:
        recipe = catalog.load_recipe(name)
        if reason := why_not(recipe, model, hardware, calibration):
            usable = usable_recipes(model, hardware, calibration)
            raise ProblemError(f"precision {name} cannot run on {hardware.name}: {reason}. Usable: {', '.join(usable) or 'none'}")
        return recipe
    usable = usable_recipes(model, hardware, calibration)
    if not usable:
        raise ProblemError(
            f"{model.name} has no checkpoint in a precision that {hardware.name} runs; "
            f"checkpoints: {', '.join(model.checkpoints) or 'none listed'}. Choose one with --precision"
        )
    return catalog.load_recipe(usable[0])


def usable_recipes(model: ModelSpec, hardware: HardwareSpec, calibration: Calibration) -> list[str]:
    """Recipes with a checkpoint that the hardware and calibration support, best first."""
    names = [n for n in RECIPE_PREFERENCE if n in model.checkpoints]
    return [n for n in names if why_not(catalog.load_recipe(n), model, hardware, calibration) is None]


def why_not(recipe: PrecisionRecipe, model: ModelSpec, hardware: HardwareSpec, calibration: Calibration) -> str | None:
    """Why a recipe cannot be priced on the hardware, or None."""
    machine = Machine(model, hardware, recipe, calibration)
    try:
        for dtype in recipe.compute_dtypes():
            hardware.gpu.peak_flops_per_s(dtype)
        for matrix in model.matrices():
            if matrix.family not in ("experts", "embedding"):
                calibration.entry("dense_gemm", machine.dtype(matrix.family))
        if model.moe:
            calibration.entry("grouped_gemm", recipe.experts)
        calibration.entry(f"{model.attention.kind}_decode", recipe.kv_cache)
    except MissingFactError as error:
        return str(error)
    return None


def _check_sizes(problem: Problem, hardware: HardwareSpec, model: ModelSpec, gpus: int) -> None:
    wrong = {"decode": "ttft", "prefill": "tpot"}[problem.target]
    if problem.objective == wrong:
        raise ProblemError(
            f"objective {wrong} says nothing about {problem.target} pools; use tokens_per_s_per_gpu or tokens_per_s"
        )
    if problem.target == "prefill" and problem.min_concurrency:
        raise ProblemError("a prefill pool has no concurrency to reach; ask for prompt tokens/s (min_tokens_per_s)")
    if hardware.max_gpus and gpus > hardware.max_gpus:
        raise ProblemError(f"{gpus} GPUs asked for, {hardware.name} has {hardware.max_gpus}")
    longest = problem.workload.peak_context_tokens
    if longest > model.max_context_tokens:
        raise ProblemError(
            f"isl + osl = {longest:,.0f} tokens exceeds the {model.max_context_tokens:,}-token context of {model.name}"
        )
    mean = problem.workload.context_tokens
    if mean > model.max_context_tokens:
        raise ProblemError(f"mean context {mean:,.0f} exceeds the {model.max_context_tokens:,}-token context of {model.name}")
    if problem.workload.mtp_acceptance and not model.mtp_layers:
        raise ProblemError(f"{model.name} has no MTP module, so an MTP acceptance makes no sense")
    if any(not 0 < rate <= 1 for rate in problem.workload.mtp_acceptance):
        raise ProblemError(f"MTP acceptance rates must lie in (0, 1], got {list(problem.workload.mtp_acceptance)}")


def _assumed(problem: Problem, engine: EngineSpec, version: str, recipe: PrecisionRecipe, gpus: int) -> tuple[str, ...]:
    """Every default that was filled in, as `name value (why)`."""
    given = problem.model_fields_set
    decode = problem.target == "decode"
    limit = (
        {"tpot_limit_s": f"TPOT limit {problem.tpot_limit_s * 1e3:.0f} ms"}
        if decode
        else {"ttft_limit_s": f"{problem.ttft_limit_s:g} s for one prompt when nothing waits"}
    )
    lines = {
        "model": f"model {problem.model}",
        "engine": f"engine {engine.title}",
        "engine_version": f"{engine.title} {version} (newest supported)",
        "precision": f"precision {recipe.name} (best the hardware has kernels for)",
        "workload": f"workload {problem.workload.isl_tokens:,} in / {problem.workload.osl_tokens:,} out",
        "gpus": f"{gpus} GPUs (one scale-up domain or the whole cluster)",
        **limit,
        "objective": f"objective {problem.objective}",
        "memory_fraction": f"memory filled to {problem.memory_fraction:.0%} at most",
    }
    unset = [text for name, text in lines.items() if name not in given or getattr(problem, name) is None]
    return tuple(unset)
