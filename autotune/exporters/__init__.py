"""Launches of a plan, one module per engine; `targets` says them in bash, Slurm, Kubernetes and others."""

from __future__ import annotations

from collections.abc import Callable

from autotune.documents.deployment import Deployment
from autotune.documents.planned_placement import PlannedPlacement
from autotune.errors import ExportError, ProblemError
from autotune.exporters.base import Script, feed_requirement, hardware_name, plain_name, recipe_name, single_pools
from autotune.exporters.benchmark import benchmark_of
from autotune.exporters.launch import Launch, LaunchPool, Process
from autotune.exporters.lengths import Lengths, lengths_of
from autotune.exporters.router import router_of
from autotune.exporters.settings import Where
from autotune.exporters.targets.bash import bash_scripts
from autotune.predicting.legality import deployment_findings, pool_findings, subject_of
from cost_models.catalog import load_model
from cost_models.specs.model import ModelSpec
from search_spaces.loader import load_engine, resolve_version
from search_spaces.rules import Finding, Subject

__all__ = ["Launch", "Script", "export", "feed_requirement", "has_exporter", "launch_of"]


def has_exporter(engine: str, version: str | None = None) -> bool:
    """Whether launch scripts can be written for an engine."""
    spec = load_engine(engine)
    return spec.writes_scripts(resolve_version(spec, version))


def launch_of(deployment: Deployment, placement: PlannedPlacement | None = None) -> Launch:
    """Every pool's processes, one per node role, the router that joins two pools, and the benchmark of a service.

    placement : of a single pool's experts; its map lies beside the scripts, which look for it there.

    Raises ExportError for an engine without an exporter and for a layout the engine cannot launch.
    """
    engine = load_engine(deployment.engine.name)
    if engine.exporter is None:
        raise ExportError(f"{engine.title} has no exporter yet: the plan stands, without launch scripts")
    version = resolve_version(engine, deployment.engine.version)
    if not engine.writes_scripts(version):
        written = ", ".join(known.version for known in engine.versions if known.scripts)
        raise ExportError(f"scripts are written for {engine.title} {written}; {version} is judged and predicted only")
    model = load_model(deployment.model)
    _refuse(deployment_findings(deployment))
    lengths = lengths_of(deployment, model)
    pool_processes = PROCESSES[engine.exporter]()
    pools = tuple(_pool(part, pool_processes, lengths) for part in single_pools(deployment))
    pair = {"prefill", "decode"} <= set(deployment.pools)
    files: tuple[Script, ...] = ()
    if engine.exporter == "trtllm":
        pools = _with_map(pools, placement, model)
        files = _settings(pools)
    if placement is not None and engine.exporter in MAPS:
        _check_map(placement, model)
        files = (MAPS[engine.exporter](placement, model),)
    return Launch(
        name=f"{plain_name(deployment.model)}-{hardware_name(deployment)}",
        engine=engine.name,
        version=version,
        model=plain_name(deployment.model),
        precision=recipe_name(deployment),
        phase=deployment.phase,
        pools=pools,
        router=router_of(deployment, engine.exporter) if pair else None,
        benchmark=benchmark_of(deployment, engine.exporter, model, lengths) if deployment.phase == "serve" else None,
        files=files,
    )


def export(deployment: Deployment, placement: PlannedPlacement | None = None) -> list[Script]:
    """The launch in bash. Raises ExportError as `launch_of`."""
    return bash_scripts(launch_of(deployment, placement))


def _pool(part: Deployment, processes: PoolProcesses, lengths: Lengths) -> LaunchPool:
    """One pool of a launch."""
    subject = subject_of(part, part.phase)
    _refuse(pool_findings(subject))
    made = tuple(processes(part, subject, lengths))
    where = Where(part, subject, made[0].place)
    return LaunchPool(
        role=part.phase,
        pool=part.pool,
        hardware=hardware_name(part),
        precision=recipe_name(part),
        vendor=where.vendor,
        place=where.place,
        processes=made,
        fabric=where.fabric and ((where.several_nodes and where.inside_a_domain) or where.pair_in_a_domain),
        rdma=(where.several_nodes and not (where.fabric and where.inside_a_domain))
        or (where.pair and not where.pair_in_a_domain),
    )


def _check_map(placement: PlannedPlacement, model: ModelSpec) -> None:
    """Raise ExportError for a map (of a plan that was edited) that leaves an expert nowhere or names one that is not there."""
    from autotune.placement.placing import checked_experts

    try:
        checked_experts(placement.experts, model)
    except ProblemError as error:
        raise ExportError(f"the plan's map of experts: {error}") from error


def _refuse(found: tuple[Finding, ...]) -> None:
    """Raise for what the engine would refuse."""
    for finding in found:
        if finding.stops:
            raise ExportError(finding.line())


def _vllm() -> PoolProcesses:
    from autotune.exporters.vllm import vllm_processes

    return vllm_processes


def _sglang() -> PoolProcesses:
    from autotune.exporters.sglang import sglang_processes

    return sglang_processes


def _vllm_ascend() -> PoolProcesses:
    from autotune.exporters.vllm_ascend import vllm_ascend_processes

    return vllm_ascend_processes


def _ascend_map(placement: PlannedPlacement, model: ModelSpec) -> Script:
    from autotune.exporters.vllm_ascend import ASCEND_MAP_FILE
    from autotune.placement.formats import ascend_expert_map

    return Script(ASCEND_MAP_FILE, ascend_expert_map(placement, model), executable=False)


def _sglang_map(placement: PlannedPlacement, model: ModelSpec) -> Script:
    from autotune.exporters.sglang import SGLANG_MAP_FILE
    from autotune.placement.formats import sglang_expert_location

    return Script(SGLANG_MAP_FILE, sglang_expert_location(placement, model), executable=False)


MAPS: dict[str, Callable[[PlannedPlacement, ModelSpec], Script]] = {"sglang": _sglang_map, "vllm-ascend": _ascend_map}
MAP_FILES = ("sglang_expert_location.json", "vllm_ascend_expert_map.json")
"""Names of the maps that lie beside scripts."""


def _trtllm() -> PoolProcesses:
    from autotune.exporters.trtllm import trtllm_processes

    return trtllm_processes


def _with_map(pools: tuple[LaunchPool, ...], placement: PlannedPlacement | None, model: ModelSpec) -> tuple[LaunchPool, ...]:
    """Pools of TensorRT-LLM, whose settings hold the plan's map of experts."""
    from autotune.exporters.trtllm import with_map

    if placement is None:
        return pools
    _check_map(placement, model)
    return with_map(pools, placement, model)


def _settings(pools: tuple[LaunchPool, ...]) -> tuple[Script, ...]:
    """Settings files of TensorRT-LLM's pools."""
    from autotune.exporters.trtllm import settings_files

    return settings_files(pools)


PoolProcesses = Callable[[Deployment, Subject, Lengths], list[Process]]
PROCESSES: dict[str, Callable[[], PoolProcesses]] = {
    "vllm": _vllm,
    "vllm-ascend": _vllm_ascend,
    "sglang": _sglang,
    "trtllm": _trtllm,
}
