"""The options of a recipe's command beside those that our plan's scripts would have."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping

from autotune.auditing.commands import ReadCommand
from autotune.auditing.options import split_options
from autotune.auditing.shell import Invocation, find_command
from autotune.documents.deployment import Deployment, PoolRole
from autotune.errors import ExportError
from autotune.exporters import has_exporter, launch_of
from autotune.exporters.launch import Process
from autotune.exporters.quoting import words
from autotune.exporters.targets.base import literal_of
from autotune.exporters.targets.pods import PodShape, known_variables
from cost_models.specs.base import Spec
from search_spaces.loader import load_engine

OF_THE_PLACE = (
    "--model", "--model-path", "--served-model-name", "--host", "--port", "--node-rank", "--nnodes", "--dist-init-addr",
    "--master-addr", "--master-port", "--headless", "--data-parallel-address", "--data-parallel-rpc-port",
    "--data-parallel-start-rank", "--data-parallel-size-local", "--disaggregation-bootstrap-port", "--nccl-port", "--base-gpu-id",
    "--api-key", "--download-dir", "--dist-init-addr", "--trust-remote-code", "--disaggregation-ib-device",
)  # fmt: skip
"""Options that say where something runs, not how."""
SWITCHED_ON, ABSENT = "on", "-"


class OptionDifference(Spec):
    """One option in which the commands differ."""

    pool: PoolRole
    option: str
    recipe: str
    """Its value; "on" for a switch, "-" where it is not given."""
    ours: str


def option_differences(read: ReadCommand, ours: Deployment) -> tuple[OptionDifference, ...]:
    """What the recipe's commands say otherwise than our scripts would; empty where either has no command.

    Of pools that both have: an engine that both prefills and decodes is held against our decode pool.
    """
    try:
        made = _our_options(ours)
    except ExportError:
        return ()
    found: list[OptionDifference] = []
    for role, written in read.written.items():
        if role in made:
            found += _differing(role, written.options, made[role])
    return tuple(found)


def _our_options(ours: Deployment) -> dict[PoolRole, Mapping[str, str | None]]:
    if not has_exporter(ours.engine.name, ours.engine.version):
        return {}
    launch = launch_of(ours)
    engine = load_engine(ours.engine.name)
    return {pool.role: split_options(_invocation(pool.head), engine, launch.version).options for pool in launch.pools}


def _invocation(process: Process) -> Invocation:
    """A script's command with the values of its variables put in, and the settings file that it names."""
    known = known_variables(process, PodShape())
    parts = [literal_of(part, known) for part in process.command]
    parts += [literal_of(value, known) for argument in process.arguments for value in argument.words()]
    found = find_command(words(parts))
    return dataclasses.replace(found, files={known["SETTINGS"]: json.dumps(process.settings)}) if process.settings else found


def _differing(role: PoolRole, recipe: Mapping[str, str | None], ours: Mapping[str, str | None]) -> Iterator[OptionDifference]:
    for name in sorted({*recipe, *ours} - set(OF_THE_PLACE)):
        values = [_shown(side, name) for side in (recipe, ours)]
        if values[0] != values[1]:
            yield OptionDifference(pool=role, option=name, recipe=values[0], ours=values[1])


def _shown(options: Mapping[str, str | None], name: str) -> str:
    if name not in options:
        return ABSENT
    return options[name] or SWITCHED_ON
