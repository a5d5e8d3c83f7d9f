"""Pools and deployments as what the engine rules look at."""

from __future__ import annotations

from collections.abc import Mapping

from autotune.documents.deployment import Deployment, PoolRole
from autotune.documents.knobs import pool_rows
from autotune.resolving import resolve_recipe
from cost_models.catalog import load_hardware, load_model
from search_spaces.loader import load_engine, resolve_version
from search_spaces.rules import RULES, Finding, Role, Subject, findings, pair_findings, unmet


def subject_of(
    deployment: Deployment,
    phase: PoolRole,
    role: Role | None = None,
    options: Mapping[str, str | None] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Subject:
    """One pool of a deployment.

    role : what it does, where it is not what its phase says; options, environment : of the command that was read, where one was.
    """
    engine = load_engine(deployment.engine.name)
    pool = deployment.pools[phase]
    model = load_model(deployment.model)
    hardware = load_hardware(pool.hardware or deployment.hardware)
    return Subject(
        engine=engine,
        version=resolve_version(engine, deployment.engine.version),
        model=model,
        recipe=resolve_recipe(pool.precision or deployment.precision, model).on(hardware.gpu.architecture),
        hardware=hardware,
        role=role or phase,
        rows=pool_rows(pool),
        options=options,
        environment=environment or {},
        asked=deployment.engine.version,
    )


def pool_findings(subject: Subject) -> tuple[Finding, ...]:
    """What one pool breaks, and what the command that it was read from lacks."""
    return (*findings(RULES, subject), *unmet(subject))


def deployment_findings(deployment: Deployment) -> tuple[Finding, ...]:
    """What the two pools of a pair break together."""
    if not {"prefill", "decode"} <= set(deployment.pools):
        return ()
    return pair_findings(subject_of(deployment, "prefill"), subject_of(deployment, "decode"))
