"""Launch scripts for a plan, one module per engine."""

from __future__ import annotations

from collections.abc import Callable

from autotune.documents.deployment import Deployment
from autotune.documents.planned_placement import PlannedPlacement
from autotune.errors import ExportError, ProblemError
from autotune.exporters.base import Script, feed_requirement, single_pools
from autotune.exporters.benchmark import benchmark_script
from autotune.exporters.lengths import Lengths, lengths_of
from autotune.exporters.router import router_script
from autotune.predicting.legality import deployment_findings, pool_findings, subject_of
from cost_models.catalog import load_model
from cost_models.specs.model import ModelSpec
from search_spaces.loader import load_engine, resolve_version
from search_spaces.rules import Finding, Subject

__all__ = ["Script", "export", "feed_requirement", "has_exporter"]


def has_exporter(engine: str, version: str | None = None) -> bool:
    """Whether launch scripts can be written for an engine."""
    spec = load_engine(engine)
    return spec.writes_scripts(resolve_version(spec, version))


def export(deployment: Deployment, placement: PlannedPlacement | None = None) -> list[Script]:
    """Launch scripts of every pool, one per node role, of the router that joins two pools, and of the benchmark of a service.

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
    pool_scripts = SCRIPTS[engine.exporter]()
    scripts = []
    for part in single_pools(deployment):
        subject = subject_of(part, part.phase)
        _refuse(pool_findings(subject))
        scripts += pool_scripts(part, subject, lengths)
    if {"prefill", "decode"} <= set(deployment.pools):
        scripts.append(router_script(deployment, engine.exporter))
    if deployment.phase == "serve":
        scripts.append(benchmark_script(deployment, engine.exporter, model))
    if placement is not None and engine.exporter in MAPS:
        _check_map(placement, model)
        scripts.append(MAPS[engine.exporter](placement, model))
    return scripts


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


def _vllm() -> PoolScripts:
    from autotune.exporters.vllm import vllm_scripts

    return vllm_scripts


def _sglang() -> PoolScripts:
    from autotune.exporters.sglang import sglang_scripts

    return sglang_scripts


def _vllm_ascend() -> PoolScripts:
    from autotune.exporters.vllm_ascend import vllm_ascend_scripts

    return vllm_ascend_scripts


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
PoolScripts = Callable[[Deployment, Subject, Lengths], list[Script]]
SCRIPTS: dict[str, Callable[[], PoolScripts]] = {"vllm": _vllm, "vllm-ascend": _vllm_ascend, "sglang": _sglang}
