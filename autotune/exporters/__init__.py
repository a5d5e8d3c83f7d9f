"""Launch scripts for a plan, one module per engine."""

from __future__ import annotations

from autotune.deployment import Deployment
from autotune.errors import ExportError
from autotune.exporters.base import Script, feed_requirement
from cost_models.catalog import load_hardware, load_model
from search_spaces.loader import load_engine, resolve_version

__all__ = ["Script", "export", "feed_requirement", "has_exporter"]


def has_exporter(engine: str) -> bool:
    """Whether launch scripts can be written for an engine."""
    return load_engine(engine).exporter is not None


def export(deployment: Deployment) -> list[Script]:
    """Launch scripts of a decode deployment, one per node role.

    Raises ExportError for an engine without an exporter and for a layout the engine cannot launch.
    """
    engine = load_engine(deployment.engine.name)
    if engine.exporter is None:
        raise ExportError(f"{engine.title} has no exporter yet: the plan stands, without launch scripts")
    version = resolve_version(engine, deployment.engine.version)
    hardware = load_hardware(deployment.hardware)
    model = load_model(deployment.model)
    if engine.exporter == "vllm":
        from autotune.exporters.vllm import vllm_scripts

        return vllm_scripts(deployment, engine, version, hardware, model)
    from autotune.exporters.sglang import sglang_scripts

    return sglang_scripts(deployment, engine, version, hardware, model)
