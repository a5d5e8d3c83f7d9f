"""bash: one script per node role, router.sh, bench.sh; variables of the place of launch are the operator's."""

from __future__ import annotations

from autotune.exporters.base import Script, render_script, render_template
from autotune.exporters.launch import Launch, Process, Router
from autotune.exporters.quoting import Shell, words
from autotune.exporters.targets.base import Target


def bash_scripts(launch: Launch) -> list[Script]:
    """Scripts of every pool, of the router and of the benchmark, and the files beside them."""
    scripts = [node_script(process) for pool in launch.pools for process in pool.processes]
    if launch.router is not None:
        scripts.append(router_script(launch.router))
    return [*scripts, *bench_scripts(launch), *launch.files]


def node_script(process: Process) -> Script:
    """What a node runs."""
    name = f"{process.name}.sh"
    if process.per_rank is not None:
        return Script(name, _per_rank(process))
    if process.ranks:
        return Script(name, _by_mpi(process))
    return Script(
        name,
        render_script(
            title=process.title,
            comments=list(process.comments),
            required=list(process.required),
            beside=list(process.beside),
            optional=process.optional,
            place=process.place,
            environment=process.environment,
            network=process.network,
            command=words(process.command),
            arguments=list(process.arguments),
            defaults=process.defaults,
            strides=process.strides,
            offsets=process.offsets,
        ),
    )


def _by_mpi(process: Process) -> str:
    """An instance of several nodes that MPI starts from the first."""
    exported = {**process.defaults, **process.environment}
    return render_template(
        "mpi_head.sh.j2",
        title=process.title,
        comments=process.comments,
        required=process.required,
        beside=process.beside,
        optional=process.optional,
        nodes=process.place.nodes,
        gpus=process.place.gpus_per_node,
        ranks=process.ranks,
        map_by=f"ppr:{process.place.gpus_per_node}:node",
        defaults=process.defaults,
        environment=process.environment,
        exported=words(part for name in exported for part in ("-x", name)),
        command=words(process.command),
        arguments=[argument.rendered() for argument in process.arguments],
    )


def _per_rank(process: Process) -> str:
    """A node that starts a server for each of its ranks."""
    place, ranks = process.place, process.per_rank
    assert ranks is not None
    return render_template(
        "ascend_node.sh.j2",
        title=process.title,
        comments=process.comments,
        required=process.required,
        beside=process.beside,
        optional=process.optional,
        place=place,
        slot_ports=process.strides,
        chips_per_npu=ranks.chips_per_npu,
        environment=process.environment,
        local=ranks.servers,
        tp=ranks.tp,
        first_device=Shell("SLOT * {gpus}").filled(gpus=place.gpus_per_node) if place.per_node > 1 else 0,
        command=words(process.command),
        arguments=[argument.rendered() for argument in process.arguments],
    )


def router_script(router: Router) -> Script:
    """router.sh: sends each request to one prefill and one decode server."""
    text = render_template(
        router.template,
        title="router.sh: one endpoint for both pools",
        comments=router.comments,
        required=router.required,
        optional=router.optional,
        command=router.command,
        bootstrap_offset=router.bootstrap_offset,
    )
    return Script("router.sh", text)


def bench_scripts(launch: Launch) -> list[Script]:
    """bench.sh, of a service: waits for it, then sends the planned load."""
    benchmark = launch.benchmark
    if benchmark is None:
        return []
    text = render_template(
        "bench.sh.j2",
        title="bench.sh: the load that the service was planned for",
        comments=benchmark.comments,
        required=benchmark.required,
        optional=benchmark.optional,
        command=benchmark.command,
        arguments=[argument.rendered() for argument in benchmark.arguments],
    )
    return [Script("bench.sh", text)]


TARGET = Target(
    name="bash",
    title="bash on every node",
    render=lambda launch, _: bash_scripts(launch),
    apply="bash <script>.sh on every node, with the variables that it asks for",
    validate="bash -n *.sh",
)
