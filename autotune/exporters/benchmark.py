"""The load that a service was planned for, as the engine's own benchmark sends it."""

from __future__ import annotations

from autotune.documents.deployment import Deployment, Load, PoolRole
from autotune.exporters.base import Argument, Required, checkpoint, needed_arguments, served_name
from autotune.exporters.launch import Benchmark
from autotune.exporters.lengths import Lengths
from autotune.exporters.quoting import Shell
from autotune.exporters.settings import START_LIMIT_S
from autotune.predicting.legality import subject_of
from cost_models.specs.model import ModelSpec
from search_spaces.rules import written
from search_spaces.rules.requirements import Needed

SECONDS = 300
"""Of a benchmark at a given rate, about."""
ROUNDS = 10
"""Requests of a closed loop, over those in flight."""
FEWEST_REQUESTS = 100
TOOLS = {"vllm": "vllm", "vllm-ascend": "vllm", "sglang": "sglang", "trtllm": "trtllm"}
"""Exporter -> whose benchmark."""
COMMANDS = {
    "vllm": Shell("vllm bench serve"),
    "sglang": Shell("python3 -m sglang.bench_serving"),
    "trtllm": Shell("python3 -m tensorrt_llm.serve.scripts.benchmark_serving"),
}


def benchmark_of(deployment: Deployment, exporter: str, model: ModelSpec, lengths: Lengths) -> Benchmark:
    """A random-token benchmark of the workload's lengths at the planned rate or concurrency; result in RESULT.

    Options: docs.vllm.ai/en/latest/cli/bench/serve, sglang/benchmark/serving.py,
    tensorrt_llm/serve/scripts. A trace is replaced by its mean lengths.
    """
    load = deployment.load or Load(concurrency=1)
    concurrency = [Argument("--max-concurrency", load.concurrency)] if load.concurrency else []
    rate = [Argument("--request-rate", f"{load.rate_per_s:g}")] if load.rate_per_s else []
    requests = (load.concurrency or 0) * ROUNDS or round((load.rate_per_s or 1.0) * SECONDS)
    shared = [
        Argument("--base-url", Shell('"$URL"')),
        Argument("--model", Shell('"$MODEL"')),
        Argument("--served-model-name", Shell('"$SERVED_NAME"')),
        *(needed_arguments(_needed(deployment)) if TOOLS[exporter] == "vllm" else []),  # SGLang's trusts by itself
        *_random(lengths, TOOLS[exporter]),
        Argument("--num-prompts", max(requests, FEWEST_REQUESTS)),
        *concurrency,
        *rate,
        *OWN[TOOLS[exporter]],
    ]
    return Benchmark(
        COMMANDS[TOOLS[exporter]],
        comments=(
            "Written by autotune. Run it from a machine that reaches the service and has the engine installed.",
            f"It sends {_said(deployment)}; it waits for the service, WAIT_S seconds at most.",
            'Afterwards: autotune verify "$RESULT" --deployment RUN (the run folder, for its best plan, or a deployment file).',
        ),
        required=(Required("URL", "where the service listens, e.g. http://router:9000"),),
        optional={
            "MODEL": checkpoint(deployment, model),
            "SERVED_NAME": served_name(deployment, model),
            "RESULT": "bench.json",
            "WAIT_S": str(START_LIMIT_S),
            "HEALTH": HEALTH.get((exporter, len(deployment.pools)), "/health"),
        },
        arguments=tuple(shared),
    )


_OF_VLLM = [
    Argument("--ignore-eos"),
    Argument("--percentile-metrics", "ttft,tpot,itl,e2el"),
    Argument("--metric-percentiles", "50,95,99"),
    Argument("--save-result"),
    Argument("--result-filename", Shell('"$RESULT"')),
]
OWN = {
    "vllm": _OF_VLLM,
    "sglang": [Argument("--backend", "sglang"), Argument("--output-file", Shell('"$RESULT"'))],
    "trtllm": [Argument("--backend", "openai"), Argument("--random-ids"), *_OF_VLLM],  # made from vLLM's, 1.3.0rc3
}
HEALTH = {("vllm-ascend", 2): "/healthcheck"}
"""(exporter, pools) -> where the service says that it is well, where that is not /health: the plugin's proxy."""


def _random(lengths: Lengths, tool: str) -> list[Argument]:
    """Random tokens of the planned lengths; of a service with synthetic lengths, evenly between the shortest and the longest.

    vLLM draws within +-r of a length, SGLang between r times a length and itself (and needs no download with random-ids).
    """
    if tool == "sglang":
        sizes, spread, data = (lengths.isl, lengths.osl), lengths.shortest, "random-ids"
    else:
        share = (1 + lengths.shortest) / 2
        sizes = (max(round(lengths.isl * share), 1), max(round(lengths.osl * share), 1))
        spread, data = (1 - lengths.shortest) / (1 + lengths.shortest), "random"
    found = [
        Argument("--dataset-name", data),
        Argument("--random-input-len", sizes[0]),
        Argument("--random-output-len", sizes[1]),
    ]
    return [*found, Argument("--random-range-ratio", f"{spread:.3g}")] if tool == "sglang" or spread else found


def _said(deployment: Deployment) -> str:
    """What is sent, for the header."""
    if deployment.load is not None and deployment.load.trace:
        return "requests of the trace's mean lengths"
    return "requests of the planned lengths"


def _needed(deployment: Deployment) -> Needed:
    """Of what the engine's rules ask for, what concerns the tokenizer."""
    phase: PoolRole = "decode" if "decode" in deployment.pools else "serve"
    needed = written(subject_of(deployment, phase))
    return Needed({name: values for name, values in needed.options.items() if name == "--trust-remote-code"})
