"""The router in front of a prefill and a decode pool."""

from __future__ import annotations

from autotune.documents.deployment import Deployment
from autotune.exporters.base import Required
from autotune.exporters.launch import Router
from autotune.exporters.quoting import Shell
from autotune.exporters.settings import START_LIMIT_S

TEMPLATES = {"vllm-ascend": "router_ascend.sh.j2", "trtllm": "router_trtllm.sh.j2"}
"""Of exporters whose router is called otherwise."""
NODES = (
    "A server is a node that listens: every node of a data-parallel instance under hybrid load balancing, else the head of an "
    "instance."
)
INSTANCES = "A server is the node that serves an instance: its only one, or the first."
SERVERS = {
    "trtllm": INSTANCES,
    "vllm-ascend": "Every data-parallel rank is a server: each node has several, one port after the other.",
}
ROUTERS = {
    "vllm": (
        Shell('vllm-router --vllm-pd-disaggregation --policy round_robin --worker-startup-timeout-secs "$WAIT_S"'),
        "pip install vllm-router",
    ),
    "sglang": (
        Shell(
            "python3 -m sglang_router.launch_router --pd-disaggregation --policy round_robin "
            '--worker-startup-timeout-secs "$WAIT_S"'
        ),
        "pip install sglang-router",
    ),
    "trtllm": (Shell("trtllm-serve disaggregated"), "trtllm-serve of the engine's own image"),
    "vllm-ascend": (Shell(), "examples/disaggregated_prefill_v1/load_balance_proxy_server_example.py of vllm-ascend"),
}
"""Exporter -> command, and where it comes from."""
OPTIONAL = {"trtllm": {"WAIT_LIMIT_S": "3600"}}
"""Further variables of a router: how long TensorRT-LLM's lets a request take [s]; its own 180 s are short for long answers."""
BOOTSTRAP_OFFSETS = {"sglang": 1000}
"""Exporter -> how far from its own port a prefill server hands caches over."""


def router_of(deployment: Deployment, exporter: str) -> Router:
    """What sends each request to one prefill and one decode server."""
    command, source = ROUTERS[exporter]
    servers = {phase: pool.instances for phase, pool in deployment.pools.items()}
    return Router(
        command,
        source,
        TEMPLATES.get(exporter, "router.sh.j2"),
        comments=(
            f"Written by autotune; the router is {'part' if exporter == 'trtllm' else 'not part'} of the engine: {source}.",
            f"It waits for the servers, WAIT_S seconds at most. {SERVERS.get(exporter, NODES)}",
            f"The plan has {servers['prefill']} prefill and {servers['decode']} decode instances.",
        ),
        required=(
            Required("PREFILL_URLS", "prefill servers, separated by spaces, e.g. http://10.0.0.1:8000 http://10.0.0.2:8000"),
            Required("DECODE_URLS", "decode servers, separated by spaces"),
            *([Required("PROXY", source)] if not command else []),
        ),
        optional={"PORT": "9000", "WAIT_S": str(START_LIMIT_S), **OPTIONAL.get(exporter, {})},
        bootstrap_offset=BOOTSTRAP_OFFSETS.get(exporter, 0),
    )
