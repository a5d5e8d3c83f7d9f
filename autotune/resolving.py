"""What was asked, with its documents loaded and every default filled in and named."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from autotune.documents.deployment import DEFAULT_MEMORY_FRACTION, CalibrationChoice, PoolRole, PrecisionChoice
from autotune.documents.problem import DEFAULT_TTFT_S, Problem
from autotune.errors import ProblemError
from cost_models import catalog
from cost_models.calibration import Calibration
from cost_models.drafters import Drafter, drafter_from_config, find_drafter, known_drafters
from cost_models.errors import InputError, MissingFactError
from cost_models.machine import Machine
from cost_models.reading import is_folder, named, parse_json, read_text
from cost_models.specs.bounds import check_config
from cost_models.specs.hardware import HardwareSpec
from cost_models.specs.model import ModelSpec
from cost_models.specs.precision import PrecisionRecipe
from search_spaces.loader import default_engine_of, load_engine, resolve_version, version_notes
from search_spaces.schema import EngineSpec

if TYPE_CHECKING:
    from autotune.placement.skew import RecordedSkew

RECIPE_PREFERENCE = (
    "nvfp4",
    "fp8-block",
    "fp8-tensor",
    "mxfp8",
    "mxfp4",
    "mxfp4-mxfp8",
    "mxfp4-mxfp4",
    "int8",
    "nvfp4-w4a16",
    "int4",
    "bf16",
)


@dataclass(frozen=True, slots=True)
class ResolvedProblem:
    """A problem with its documents loaded and its defaults named."""

    problem: Problem
    machine: Machine
    engine: EngineSpec
    version: str
    gpus: int
    assumed: tuple[str, ...]
    pool: PoolRole = "decode"
    """Which pool is planned; `serve` is an aggregated one."""
    skew: RecordedSkew | None = None
    """Of recorded expert loads, where there are any."""

    @property
    def loads_map(self) -> bool:
        """Whether experts are placed once, from recorded loads, instead of being rebalanced while serving."""
        return self.skew is not None and self.skew.loads_maps

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
    def ttft_limits_s(self) -> dict[str, float]:
        """Limits of a service on percentiles of its time to first token.

        A closed loop has only those given: it starts with all its prompts at once.
        """
        given = {name: getattr(self.problem, f"ttft_{name}_limit_s") for name in ("p50", "p95", "p99")}
        limits = {name: limit for name, limit in given.items() if limit is not None}
        closed = self.problem.load is not None and self.problem.load.concurrency is not None
        return limits or ({} if closed else {"p99": DEFAULT_TTFT_S})

    @property
    def latency_limit_s(self) -> float:
        """Limit on the time per output token (decode) or of one prompt (prefill)."""
        return self.problem.tpot_limit_s if self.phase == "decode" else self.problem.ttft_limit_s

    @property
    def memory_fraction(self) -> float:
        """Share of the driver-reported memory that plans may fill."""
        return self.problem.memory_fraction or DEFAULT_MEMORY_FRACTION

    @property
    def memory_limit_bytes(self) -> float:
        return self.hardware.gpu.hbm_visible_bytes.value * self.memory_fraction


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
    calibration = resolve_calibration(problem.calibration, hardware.gpu.name, engine.calibration_engine, version)
    recipe = choose_recipe(problem.precision, model, hardware, calibration)
    gpus = problem.gpus or hardware.default_gpus
    drafter = resolve_drafter(problem.drafter, model)
    _check_sizes(problem, hardware, model, gpus)
    return ResolvedProblem(
        problem=problem,
        machine=Machine(model, hardware, recipe, calibration, problem.workload.sigma, drafter),
        engine=engine,
        version=version,
        gpus=gpus,
        assumed=(
            *_assumed(problem, engine, version, model, recipe, gpus),
            *release_notes(problem.calibration, hardware.gpu.name, engine.calibration_engine, version),
        ),
        pool=problem.target,
        skew=_recorded_skew(problem, model, engine),
    )


def _recorded_skew(problem: Problem, model: ModelSpec, engine: EngineSpec) -> RecordedSkew | None:
    if not problem.expert_load:
        return None
    from autotune.placement.loads import read_loads
    from autotune.placement.skew import RecordedSkew

    return RecordedSkew(read_loads([Path(name) for name in problem.expert_load], model), loads_maps=engine.loads_expert_maps)


def default_engine(hardware: HardwareSpec) -> str:
    """The engine taken when none is named; raises ProblemError for a vendor that no engine is the usual one of."""
    if engine := default_engine_of(hardware.gpu.vendor):
        return engine
    raise ProblemError(f"no engine is known for {hardware.gpu.vendor} {hardware.gpu.name}; name one with --engine")


def choose_recipe(name: str | None, model: ModelSpec, hardware: HardwareSpec, calibration: Calibration) -> PrecisionRecipe:
    """The named recipe, or the best one with a checkpoint, tensor cores and coefficients.

    Raises ProblemError naming what is missing for a recipe that cannot run.
    """
    if name is not None:
        recipe = catalog.recipe_of(name, model).on(hardware.gpu.architecture)
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
    return catalog.recipe_of(usable[0], model).on(hardware.gpu.architecture)


def usable_recipes(model: ModelSpec, hardware: HardwareSpec, calibration: Calibration) -> list[str]:
    """Recipes with a checkpoint that the hardware and calibration support, best first; those without tensor cores last."""
    on = hardware.gpu.architecture
    recipes = {n: catalog.recipe_of(n, model) for n in RECIPE_PREFERENCE if n in model.checkpoints}
    found = [n for n, recipe in recipes.items() if why_not(recipe.on(on), model, hardware, calibration) is None]
    return sorted(found, key=lambda n: recipes[n].widened_on(on))


def why_not(recipe: PrecisionRecipe, model: ModelSpec, hardware: HardwareSpec, calibration: Calibration) -> str | None:
    """Why a recipe cannot be priced on the hardware, or None."""
    machine = Machine(model, hardware, recipe, calibration)
    if foreign := foreign_dtype(recipe, hardware):
        return foreign
    try:
        for dtype in recipe.compute_dtypes():
            hardware.gpu.peak_flops_per_s(dtype)
        for matrix in model.matrices():
            if matrix.family not in ("experts", "embedding"):
                machine.entry("dense_gemm", machine.dtype(matrix.family))
        if model.moe:
            machine.entry("grouped_gemm", recipe.experts)
        if model.residual_streams > 1:
            calibration.entry("hyper_connections", "pre")
        for kind in model.attentions:
            for family, variant in kind.requirements(recipe, "decode"):
                calibration.entry(family, variant)
    except MissingFactError as error:
        return str(error)
    return None


def foreign_dtype(recipe: PrecisionRecipe, hardware: HardwareSpec) -> str | None:
    """What of a recipe the hardware's tensor cores do not take, as text; none where they take all."""
    dtype = recipe.foreign_dtype(hardware.gpu.architecture)
    if dtype is None:
        return None
    return f"{hardware.gpu.name} ({hardware.gpu.architecture}) has no tensor cores for {dtype}"


def _check_sizes(problem: Problem, hardware: HardwareSpec, model: ModelSpec, gpus: int) -> None:
    _check_target(problem)
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
    if problem.workload.mtp_acceptance and not (model.mtp_layers or problem.drafter):
        raise ProblemError(f"{model.name} has no MTP module, so an MTP acceptance makes no sense without a drafter (--drafter)")
    if any(not 0 < rate <= 1 for rate in problem.workload.mtp_acceptance):
        raise ProblemError(f"MTP acceptance rates must lie in (0, 1], got {list(problem.workload.mtp_acceptance)}")


ONLY_SERVE = (
    "load", "ttft_p50_limit_s", "ttft_p95_limit_s", "ttft_p99_limit_s", "prefill_hardware", "prefill_gpus",
    "prefill_precision", "gpu_hour_usd", "prefill_gpu_hour_usd",
)  # fmt: skip


def _check_target(problem: Problem) -> None:
    """Refuse what the target cannot be asked."""
    target = problem.target
    wrong = {"decode": ("ttft",), "prefill": ("tpot",), "serve": ("ttft", "tpot")}[target]
    if problem.objective in wrong:
        raise ProblemError(
            f"objective {problem.objective} does not fit target {target}; use tokens_per_s_per_gpu or tokens_per_s"
        )
    given = [name for name in ONLY_SERVE if getattr(problem, name) is not None]
    if target != "serve" and given:
        raise ProblemError(f"{', '.join(given)} belong to --target serve, not {target}")
    if target == "prefill" and problem.min_concurrency:
        raise ProblemError("a prefill pool has no concurrency to reach; ask for prompt tokens/s (min_tokens_per_s)")
    if target == "serve" and (problem.min_concurrency or problem.min_tokens_per_s):
        raise ProblemError("a service is asked for a load: requests per second, requests in flight or a trace")
    if target == "serve" and problem.workload.osl_tokens < 2:
        raise ProblemError("answers of one token need no decoding: plan a prefill pool with --target prefill")
    if not problem.prefill_hardware and (problem.prefill_gpus or problem.prefill_gpu_hour_usd or problem.prefill_precision):
        raise ProblemError("prefill_gpus, prefill_precision and prefill_gpu_hour_usd describe prefill_hardware; name it as well")
    if problem.prefill_hardware and (problem.gpu_hour_usd is None) != (problem.prefill_gpu_hour_usd is None):
        raise ProblemError("two kinds of hardware are compared by cost only when both have a price per GPU hour")


def _assumed(
    problem: Problem, engine: EngineSpec, version: str, model: ModelSpec, recipe: PrecisionRecipe, gpus: int
) -> tuple[str, ...]:
    """Every default that was filled in, as `name value (why)`."""
    given = problem.model_fields_set
    limits = {
        "decode": {"tpot_limit_s": f"TPOT limit {problem.tpot_limit_s * 1e3:.0f} ms"},
        "prefill": {"ttft_limit_s": f"{problem.ttft_limit_s:g} s for one prompt when nothing waits"},
        "serve": {
            "tpot_limit_s": f"mean TPOT limit {problem.tpot_limit_s * 1e3:.0f} ms",
            "load": "as many requests as the limits allow",
        },
    }
    lines = {
        "model": f"model {problem.model}",
        "engine": f"engine {engine.title}",
        "engine_version": f"{engine.title} {version} (newest supported)",
        "precision": f"precision {recipe.name} (best the hardware has kernels for)",
        "workload": f"workload {problem.workload.isl_tokens:,} in / {problem.workload.osl_tokens:,} out",
        "gpus": f"{gpus} GPUs (one scale-up domain or the whole cluster)",
        **limits[problem.target],
        "objective": f"objective {problem.objective}",
        "memory_fraction": f"memory filled to {problem.memory_fraction or DEFAULT_MEMORY_FRACTION:.0%} at most",
    }
    given_ttft = any((problem.ttft_p50_limit_s, problem.ttft_p95_limit_s, problem.ttft_p99_limit_s))
    if problem.target == "serve" and not given_ttft:
        closed = problem.load is not None and problem.load.concurrency is not None
        lines["ttft_p99_limit_s"] = "no TTFT limit" if closed else f"TTFT P99 limit {DEFAULT_TTFT_S:g} s"
    if problem.load is not None and problem.load.trace:
        del lines["workload"]
    if model.moe and problem.workload.popularity_sigma is None:
        lines["popularity_sigma"] = f"experts as unequally popular as in mixed real traffic (sigma {problem.workload.sigma:g})"
    unset = [text for name, text in lines.items() if name not in given or getattr(problem, name) is None]
    return (*unset, *version_notes(engine, problem.engine_version))


def resolve_recipe(choice: str | PrecisionChoice, model: ModelSpec) -> PrecisionRecipe:
    """A named recipe as the model's checkpoint is stored in it, with overrides where the deployment gives them."""
    if isinstance(choice, str):
        return catalog.recipe_of(choice, model)
    recipe = catalog.recipe_of(choice.recipe, model)
    changed = {k: v for k, v in choice.model_dump(exclude={"recipe"}).items() if v is not None}
    return recipe.model_copy(update={**changed, "name": f"{recipe.name}*"} if changed else {})


def _there(name: str) -> bool:
    """Whether a name is that of a file or folder here."""
    try:
        named(Path(name))
    except InputError:
        return False
    return True


def resolve_drafter(name: str | None, model: ModelSpec, tp: int = 1) -> Drafter | None:
    """A published drafter by name, or one by the path of its folder or config.json; none where none is named.

    Raises ProblemError for one whose shapes are not at hand, and for one that is not for the model.
    """
    if name is None:
        return None
    drafter = find_drafter(name)
    if drafter is None and _there(name):
        file = Path(name) / "config.json" if is_folder(Path(name)) else Path(name)
        config = parse_json(read_text(file), str(file), unique=True)
        if not isinstance(config, dict):
            raise ProblemError(f"{file}: expected the configuration of a drafter, found {type(config).__name__}")
        check_config(config, str(file))
        drafter = drafter_from_config(config, name=name, target=model.name, source=str(file))
    if drafter is None:
        known = ", ".join(known_drafters())
        raise ProblemError(f"drafter {name}: its shapes are not at hand (known: {known}); give the path of its config.json")
    layers = drafter.layers
    if layers.hidden != model.hidden or not (drafter.works.own_head or layers.vocab == model.vocab):
        raise ProblemError(
            f"drafter {name} (hidden size {layers.hidden:,}, vocabulary {layers.vocab:,}) is not for {model.name} "
            f"({model.hidden:,}, {model.vocab:,})"
        )
    if layers.heads % tp:
        raise ProblemError(f"tp {tp} does not divide the {layers.heads} attention heads of the drafter {name}")
    return drafter


def resolve_calibration(choice: CalibrationChoice, gpu: str, engine: str, release: str) -> Calibration:
    """The user's file, another engine's calibration, or the engine's own as a release of it has it.

    Of another engine than the one that runs, whose releases are not this one's, it is the newest.
    """
    own = _calibration_of(choice, gpu, engine)
    return own.at(release) if own.applies_to.engine == engine else own


def release_notes(choice: CalibrationChoice, gpu: str, engine: str, release: str) -> tuple[str, ...]:
    """Which kernels are priced as an older release has them, in words."""
    own = _calibration_of(choice, gpu, engine)
    found = own.of_earlier_releases(release) if own.applies_to.engine == engine else []
    older = dict.fromkeys(f"{family}.{variant}" for family, variant, _ in found)
    return (f"priced as {release} runs them, not as newer releases do: {', '.join(older)}",) if older else ()


def _calibration_of(choice: CalibrationChoice, gpu: str, engine: str) -> Calibration:
    """The document, with what it holds of every release."""
    if choice.file:
        return catalog.load_calibration(choice.file)
    return catalog.calibration_for(gpu, choice.engine or engine)
