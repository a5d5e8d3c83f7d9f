"""Docker Compose: a service that fits one node, each instance with its own GPUs.

Schema: compose-spec/compose-spec schema/compose-spec.json.
"""

from __future__ import annotations

from autotune.errors import ExportError
from autotune.exporters.base import Script
from autotune.exporters.launch import Launch, LaunchPool
from autotune.exporters.quoting import Shell
from autotune.exporters.settings import START_LIMIT_S
from autotune.exporters.targets.base import (
    ONE,
    Document,
    Target,
    TargetOptions,
    engine_image,
    literal_of,
    manifest,
    plan_annotations,
    printable,
    router_image,
    service_name,
)
from autotune.exporters.targets.bash import bench_scripts
from autotune.exporters.targets.leader_worker import router_words
from autotune.exporters.targets.pods import FILES, SHARED_MEMORY, PodShape, known_variables, refuse_mpi, refuse_unlike

HEALTHY = "import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=5)"


def _render(launch: Launch, options: TargetOptions) -> list[Script]:
    """compose.yaml, files beside it, and bench.sh."""
    refuse_unlike(launch, "compose")
    refuse_mpi(launch, "compose", "bash")
    node = launch.pools[0].place.per_node * launch.pools[0].place.gpus_per_node
    if launch.gpus > node or len({pool.hardware for pool in launch.pools}) > 1 or launch.pools[0].vendor != "nvidia":
        raise ExportError(
            f"compose starts what fits one node of {node} NVIDIA GPUs; this plan has {launch.gpus}: use --format lws"
        )
    services: Document = {}
    first = 0
    urls: dict[str, list[str]] = {}
    for pool in launch.pools:
        names = [f"{pool.role}-{instance}" for instance in range(pool.instances)]
        for name in names:
            services[name] = _engine(launch, pool, options, name, first)
            first += pool.place.gpus_per_node
        urls[pool.role] = [f"http://{name}:{pool.head.variables()['PORT']}" for name in names]
    if launch.router is not None:
        words = router_words(launch, launch.router, urls)
        services["router"] = {
            "image": router_image(options, f"a router ({launch.router.source})"),
            "entrypoint": [_literal(word) for word in words],
            "ports": [f"{launch.router.optional['PORT']}:{launch.router.optional['PORT']}"],
            "depends_on": {name: {"condition": "service_healthy"} for name in services},
        }
    elif len(services) == 1:
        port = launch.pools[0].head.variables()["PORT"]
        next(iter(services.values()))["ports"] = [f"{port}:{port}"]
    document = {"name": service_name(launch), "services": services}
    files = [manifest("compose.yaml", [document], f"{launch.engine} {launch.version} on one node"), *launch.files]
    return [*files, *bench_scripts(launch)]


def _literal(value: object) -> str:
    """Text in which Compose puts nothing in."""
    return printable(value, "an argument").replace("$", "$$")


def _engine(launch: Launch, pool: LaunchPool, options: TargetOptions, name: str, first: int) -> Document:
    process = pool.head
    known = {**known_variables(process, PodShape()), "NODE_ADDRESS": name}
    words: list[object] = [*process.command, *(value for argument in process.arguments for value in argument.words())]
    settings = {key: literal_of(value, known) for key, value in process.exported().items()}
    words = [literal_of(value, known) for value in words]
    if unknown := [value for value in (*words, *settings.values()) if isinstance(value, Shell) and ONE.search(value)]:
        raise ExportError(f"compose cannot say {unknown[0]}")
    gpus = [str(first + index) for index in range(pool.place.gpus_per_node)]
    url = f"http://localhost:{known['PORT']}/health"
    found: Document = {
        "image": engine_image(launch, pool.vendor, options),
        "entrypoint": [_literal(value) for value in words],
        "environment": {key: _literal(value) for key, value in settings.items()},
        "labels": {key: _literal(value) for key, value in plan_annotations(launch, pool).items()},
        "shm_size": SHARED_MEMORY.lower().removesuffix("i") + "b",
        "ulimits": {"memlock": -1, "stack": 67108864},
        "stop_grace_period": "120s",
        "deploy": {"resources": {"reservations": {"devices": [
            {"driver": "nvidia", "device_ids": gpus, "capabilities": ["gpu"]}]}}},
        "healthcheck": {
            "test": ["CMD", "python3", "-c", HEALTHY, url], "interval": "10s", "timeout": "10s", "retries": 3,
            "start_period": f"{START_LIMIT_S}s",
        },
    }  # fmt: skip
    if process.beside:
        found["volumes"] = [f"./{item.file}:{FILES}/{item.file}:ro" for item in process.beside]
    return found


TARGET = Target(
    name="compose",
    title="Docker Compose on one node",
    render=_render,
    apply="docker compose up -d",
    validate="docker compose config --quiet",
)
