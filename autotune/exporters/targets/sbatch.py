"""Slurm: one heterogeneous job, a component for every pool, that runs the bash scripts on its nodes."""

from __future__ import annotations

from autotune.errors import ExportError
from autotune.exporters.base import Script, render_template
from autotune.exporters.launch import Launch, LaunchPool
from autotune.exporters.targets.base import Document, Target, TargetOptions, service_name
from autotune.exporters.targets.bash import bash_scripts


def _render(launch: Launch, options: TargetOptions) -> list[Script]:
    """service.sbatch, and the scripts that it runs."""
    if options.image is not None:
        raise ExportError("sbatch runs the engine that is installed on the nodes: --image is for targets of containers")
    if several := next((pool for pool in launch.pools if pool.head.ranks), None):
        raise ExportError(
            f"sbatch starts one task a node; MPI joins the {several.place.nodes} nodes of a {several.role} instance "
            "by one task a GPU: --format srt-slurm or bash"
        )
    text = render_template(
        "service.sbatch.j2",
        title=f"{launch.engine} {launch.version}: {launch.gpus} GPUs in one job; written by autotune.",
        job=service_name(launch),
        pools=[_pool(index, pool) for index, pool in enumerate(launch.pools)],
        router=1 if launch.router is not None else 0,
    )
    return [Script("service.sbatch", text), *bash_scripts(launch)]


def _pool(index: int, pool: LaunchPool) -> Document:
    """What the job script needs of a pool."""
    process, place = pool.head, pool.place
    return {
        "group": index,
        "role": pool.role,
        "nodes": pool.nodes,
        "gpus": place.gpus_per_node * place.per_node,
        "slots": place.per_node,
        "instances": pool.instances,
        "span": place.nodes,
        "serving": 1 if pool.every_node_serves else place.nodes,
        "port": int(process.variables()["PORT"]),
        "stride": process.strides.get("PORT", 0),
        "servers": process.per_rank.servers if process.per_rank else 1,
        "head": f"{process.name}.sh",
        "worker": f"{pool.worker.name}.sh",
    }


TARGET = Target(
    name="sbatch",
    title="Slurm batch job",
    render=_render,
    apply="sbatch service.sbatch",
    validate="sbatch --test-only service.sbatch",
)
