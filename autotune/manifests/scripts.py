"""Shell and sbatch scripts: their engine commands, and the nodes and GPUs that Slurm is asked for."""

from __future__ import annotations

import re

from autotune.auditing.shell import find_command
from autotune.manifests.machines import named_hardware
from autotune.manifests.service import EngineService, Manifest

DIRECTIVE = re.compile(r"^#SBATCH\s+(--?[\w-]+)(?:[=\s]\s*(\S+))?", re.MULTILINE)
SHORT = {"-N": "--nodes", "-C": "--constraint", "-G": "--gpus"}
TYPED = re.compile(r"(?:gpu:)?(?:([A-Za-z][\w.-]*):)?(\d+)$")


def read_script(text: str) -> Manifest:
    """All engine commands of a script; one alone has the nodes and GPUs of the job. Raises ProblemError where there is none."""
    asked = {SHORT.get(name, name): value for name, value in DIRECTIVE.findall(text)}
    others = find_command(text, _set_by_slurm(asked)).others
    alone = bool(asked) and not others
    nodes, gpus, gpu = _nodes(asked), _gpus(asked), _gpu(asked)
    services = tuple(
        EngineService(
            name=f"command {at + 1}",
            text=text,
            environment=_set_by_slurm(asked),
            nodes=nodes if alone else 1,
            gpus_per_node=gpus if alone else None,
            at=at,
        )
        for at in range(others + 1)
    )
    return Manifest("sbatch script" if asked else "script", services, named_hardware(gpu) if gpu else ())


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
