"""bench.sh: the load that a service was planned for, as the engine's own benchmark sends it."""

from __future__ import annotations

from autotune.documents.deployment import Deployment, Load
from autotune.exporters.base import Argument, Required, Script, checkpoint, render_template
from autotune.exporters.quoting import Shell
from cost_models.specs.model import ModelSpec

SECONDS = 300
"""Of a benchmark at a given rate, about."""
ROUNDS = 10
"""Requests of a closed loop, over those in flight."""
FEWEST_REQUESTS = 100
TOOLS = {"vllm": "vllm", "vllm-ascend": "vllm", "sglang": "sglang"}
"""Exporter -> whose benchmark."""
COMMANDS = {"vllm": Shell("vllm bench serve"), "sglang": Shell("python3 -m sglang.bench_serving")}


def benchmark_script(deployment: Deployment, exporter: str, model: ModelSpec) -> Script:
    """A random-token benchmark of the workload's lengths at the planned rate or concurrency; result in RESULT.

    Options: docs.vllm.ai/en/latest/cli/bench/serve, sglang/bench_serving.py. A trace is replaced by its workload's mean lengths.
    """
    load, workload = deployment.load or Load(concurrency=1), deployment.workload
    concurrency = [Argument("--max-concurrency", load.concurrency)] if load.concurrency else []
    rate = [Argument("--request-rate", f"{load.rate_per_s:g}")] if load.rate_per_s else []
    requests = (load.concurrency or 0) * ROUNDS or round((load.rate_per_s or 1.0) * SECONDS)
    shared = [
        Argument("--base-url", Shell('"$URL"')),
        Argument("--model", Shell('"$MODEL"')),
        Argument("--dataset-name", "random"),
        Argument("--random-input-len", workload.isl_tokens),
        Argument("--random-output-len", workload.osl_tokens),
        Argument("--num-prompts", max(requests, FEWEST_REQUESTS)),
        *concurrency,
        *rate,
    ]
    own = {
        "vllm": [
            Argument("--ignore-eos"),
            Argument("--percentile-metrics", "ttft,tpot,itl,e2el"),
            Argument("--metric-percentiles", "50,95,99"),
            Argument("--save-result"),
            Argument("--result-filename", Shell('"$RESULT"')),
        ],
        "sglang": [
            Argument("--backend", "sglang"),
            Argument("--random-range-ratio", 1),
            Argument("--output-file", Shell('"$RESULT"')),
        ],
    }
    text = render_template(
        "bench.sh.j2",
        title="bench.sh: the load that the service was planned for",
        comments=[
            "Written by autotune. Run it from a machine that reaches the service and has the engine installed.",
            'Afterwards: autotune verify "$RESULT" --deployment RUN (the run folder, for its best plan, or a deployment file).',
        ],
        required=[Required("URL", "where the service listens, e.g. http://router:9000")],
        optional={"MODEL": checkpoint(deployment, model), "RESULT": "bench.json"},
        command=COMMANDS[TOOLS[exporter]],
        arguments=[argument.rendered() for argument in [*shared, *own[TOOLS[exporter]]]],
    )
    return Script("bench.sh", text)
