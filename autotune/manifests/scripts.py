"""Shell and sbatch scripts: their engine commands, and the nodes and GPUs that Slurm is asked for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from autotune.auditing.commands import ROLE_OF_OPTION
from autotune.auditing.settings_file import settings_text
from autotune.auditing.shell import find_commands, written_files
from autotune.documents.deployment import PoolRole
from autotune.errors import ProblemError
from autotune.manifests.machines import named_hardware
from autotune.manifests.service import EngineService, Manifest
from autotune.manifests.source import documents_in
from autotune.manifests.trtllm_disagg import is_servers_file, ports_of, server_pools
from cost_models.reading import read_text

DIRECTIVE = re.compile(r"^#SBATCH\s+(--?[\w-]+)(?:[=\s]\s*(\S+))?", re.MULTILINE)
SHORT = {"-N": "--nodes", "-C": "--constraint", "-G": "--gpus"}
ORCHESTRATED = re.compile(
    r"\btrtllm-serve\s+disaggregated(?:_mpi_worker)?\s(?:[^\n]|\\\n)*?(?:-c|--config|--config_file)[=\s]+['\"]?(?P<file>[^\s'\"]+)"
)
STARTS_ITSELF = re.compile(r"\btrtllm-serve\s+(?!disaggregated|mm_embedding)[\w./$\"'-]|dynamo\.trtllm")
TYPED = re.compile(r"(?:gpu:)?(?:([A-Za-z][\w.-]*):)?(\d+)$")
NOTHING: Mapping[str, str] = MappingProxyType({})


def read_script(text: str, folder: Path | None = None, variables: Mapping[str, str] = NOTHING) -> Manifest:
    """All engine commands of a script; one alone has the nodes and GPUs of the job.

    folder : where files lie that commands name; variables : set around the script. Raises ProblemError where there is no command.
    """
    if (servers := ORCHESTRATED.search(text)) and not STARTS_ITSELF.search(text):
        return _orchestrated(text, servers["file"], folder)
    asked = {SHORT.get(name, name): value for name, value in DIRECTIVE.findall(text)}
    environment = {**_set_by_slurm(asked), **variables}
    commands = find_commands(text, environment)
    alone = bool(asked) and len(commands) == 1
    nodes, gpus, gpu = _nodes(asked), _gpus(asked), _gpu(asked)
    roles = _roles_by_port(text, folder)
    services = tuple(
        EngineService(
            name=f"command {at + 1}",
            text=text,
            role=roles.get(_port(command.words)) if roles else None,
            environment=environment,
            nodes=nodes if alone else 1,
            gpus_per_node=gpus if alone else None,
            at=at,
            folder=folder,
        )
        for at, command in enumerate(commands)
    )
    return Manifest("sbatch script" if asked else "script", services, named_hardware(gpu) if gpu else ())


def _roles_by_port(text: str, folder: Path | None) -> dict[str, PoolRole]:
    """Which side of a pair servers are, by their ports, where the script starts their orchestrator too; empty elsewhere."""
    found = ORCHESTRATED.search(text)
    if found is None:
        return {}
    try:
        held = settings_text(found["file"], written_files(text, {}), folder)
    except ProblemError:  # only who is who would stand in it
        return {}
    documents = [document for document in documents_in(held, found["file"]) if is_servers_file(document)]
    return {port: role for document in documents for port, role in ports_of(document)}


def _port(words: tuple[str, ...]) -> str:
    """Where a server listens; 8000 where it does not say."""
    for at, word in enumerate(words):
        if word.startswith("--port"):
            return word.partition("=")[2] or next(iter(words[at + 1 : at + 2]), "")
    return "8000"


def _orchestrated(text: str, file: str, folder: Path | None) -> Manifest:
    """The pools of `trtllm-serve disaggregated`, whose file holds the settings of its servers."""
    held = settings_text(file, written_files(text, {}), folder)
    document = next((found for found in documents_in(held, file) if is_servers_file(found)), None)
    if document is None:
        raise ProblemError(f"{file}: names neither context_servers nor generation_servers")
    return server_pools(document, file)


def _nodes(asked: dict[str, str]) -> int:
    """Nodes of a job; of a range, the fewest."""
    found = re.match(r"\d+", asked.get("--nodes", ""))
    return int(found.group()) if found else 1


def _gpus(asked: dict[str, str]) -> int | None:
    """GPUs of a node."""
    for name, of_all in (("--gpus-per-node", False), ("--gres", False), ("--gpus", True)):
        found = TYPED.search(asked.get(name, ""))
        if found:
            return int(found.group(2)) // (_nodes(asked) if of_all else 1)
    return None


def _gpu(asked: dict[str, str]) -> str:
    typed = [found.group(1) for name in ("--gpus-per-node", "--gres", "--gpus") if (found := TYPED.search(asked.get(name, "")))]
    return " ".join([*(name for name in typed if name), asked.get("--constraint", "")]).strip()


def _set_by_slurm(asked: dict[str, str]) -> dict[str, str]:
    """Variables of the first task of a job."""
    nodes = str(_nodes(asked))
    return {"SLURM_NNODES": nodes, "SLURM_JOB_NUM_NODES": nodes, "SLURM_NODEID": "0", "SLURM_PROCID": "0"} if asked else {}


STARTED = ("_node.sh", "_head.sh")
"""How the scripts end that start an instance; workers of the same instance are left out."""
HEADER = re.compile(
    r"^# \S+ (?P<version>[\d.a-z]+); (?P<nodes>\d+) node\(s\) x (?P<gpus>\d+) [\w ]+ per instance, (?P<n>\d+) instance", re.M
)
HARDWARE = re.compile(r"^# \S+\.sh: .* on (?P<hardware>[\w.-]+)$", re.M)


def launch_scripts(folder: Path) -> list[Path]:
    """Scripts of a folder that `autotune export` wrote, one a pool; empty for other folders."""
    return sorted(path for path in folder.glob("*.sh") if path.name.endswith(STARTED))


def read_launch(folder: Path) -> Manifest:
    """The pools of a launch folder; raises ProblemError for scripts that do not say their nodes, as those of autotune do."""
    services, hardware = [], []
    for path in launch_scripts(folder):
        text = read_text(path)
        header, on = HEADER.search(text), HARDWARE.search(text)
        if header is None or on is None:
            raise ProblemError(f"{path}: no launch script of autotune (its first lines name hardware, nodes and instances)")
        name = path.name.rpartition("_")[0]
        services.append(
            EngineService(
                name=name,
                text=text,
                role=ROLE_OF_OPTION.get(name),
                nodes=int(header["nodes"]),
                gpus_per_node=int(header["gpus"]),
                instances=int(header["n"]),
                version=header["version"],
                folder=folder,
            )
        )
        hardware.append(on["hardware"])
    return Manifest("launch folder", tuple(services), tuple(dict.fromkeys(hardware)))
