"""KServe: an LLMInferenceService. Schema: kserve/kserve config/crd/full/llmisvc (serving.kserve.io/v1alpha2).

KServe's own templates start vLLM (config/llmisvcconfig): parallelism is said in its fields, all else in VLLM_ADDITIONAL_ARGS,
which those templates hand to a shell. Its runtime for SGLang (config/runtimes/kserve-llm-sglang.yaml, preset
config-sglang-template.yaml) starts one node that does both; it takes the container's arguments as they are.
"""

from __future__ import annotations

import re

from autotune.errors import ExportError
from autotune.exporters.base import Script
from autotune.exporters.launch import Launch, LaunchPool
from autotune.exporters.quoting import words
from autotune.exporters.targets.base import (
    Document,
    Target,
    TargetOptions,
    escaped,
    kubernetes_text,
    literal_of,
    manifest,
    plan_annotations,
    printable,
    service_name,
)
from autotune.exporters.targets.bash import bench_scripts
from autotune.exporters.targets.llmd import ENGINE_LABEL, with_metrics
from autotune.exporters.targets.pods import (
    SHARED_MEMORY,
    PodShape,
    container,
    known_variables,
    labels,
    metadata,
    pod_spec,
    refuse_lone_pool,
    refuse_unlike,
    shared_objects,
)

OWN = ("--port", "--served-model-name", "--tensor-parallel-size")
"""Options that every template of KServe sets."""
SPREAD = (
    "--data-parallel-size", "--data-parallel-size-local", "--data-parallel-start-rank", "--data-parallel-address",
    "--data-parallel-rpc-port", "--data-parallel-hybrid-lb", "--enable-expert-parallel",
)  # fmt: skip
"""Options that its templates for data parallelism over nodes set too (config-llm-*-worker-data-parallel.yaml)."""
SGLANG_RUNTIME = "kserve-llm-sglang"
OF_SGLANG_RUNTIME = ("--model-path", "--served-model-name", "--host", "--port", "--tp-size")
"""Options that its preset sets."""
RPC_PORT = 13345
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def _render(launch: Launch, options: TargetOptions) -> list[Script]:
    """service.yaml, and bench.sh."""
    refuse_unlike(launch, "kserve")
    refuse_lone_pool(launch, "kserve", "lws")
    _refuse_unspoken(launch)
    launch = with_metrics(launch)
    variables = launch.pools[-1].head.variables()
    if not HUB_NAME.fullmatch(variables["MODEL"]):
        raise ExportError(f"kserve loads a model by URI; {variables['MODEL']} is no repository of Hugging Face: use --format lws")
    main, *other = reversed(launch.pools)  # the decode pool is the service, prefill its part
    model = {"uri": f"hf://{printable(variables['MODEL'], 'the model')}", "name": printable(variables["SERVED_NAME"], "the name")}
    runtime = {"runtime": SGLANG_RUNTIME} if launch.engine == "sglang" else {}
    spec: Document = {**runtime, "model": model, **_pool(launch, main, options)}
    spec["router"] = {"route": {}, "gateway": {}, "scheduler": {}}
    if other:
        spec["prefill"] = _pool(launch, other[0], options)
        spec["prefill"] |= {"labels": labels(launch, other[0]), "annotations": plan_annotations(launch, other[0])}
    told = {ENGINE_LABEL: launch.engine} if launch.engine == "sglang" else {}  # KServe's scheduler is llm-d's
    spec |= {"labels": labels(launch, main) | told, "annotations": plan_annotations(launch, main)}
    service = {
        "apiVersion": "serving.kserve.io/v1alpha2",
        "kind": "LLMInferenceService",
        "metadata": metadata(launch, service_name(launch)),
        "spec": spec,
    }
    files = [
        manifest("service.yaml", [*shared_objects(launch), service], f"LLMInferenceService of {launch.engine} {launch.version}")
    ]
    return [*files, *bench_scripts(launch)]


def _refuse_unspoken(launch: Launch) -> None:
    """Raises ExportError for what KServe has no template for."""
    if launch.engine not in ("vllm", "sglang"):
        raise ExportError(f"KServe's LLMInferenceService starts vLLM and SGLang, not {launch.engine}: use --format lws")
    several = any(pool.place.nodes > 1 for pool in launch.pools)
    if launch.engine == "sglang" and (len(launch.pools) > 1 or several):
        what = "a pair of pools" if len(launch.pools) > 1 else "an instance over several nodes"
        raise ExportError(f"KServe's runtime for SGLang starts one node that does both, not {what}: use --format llmd or lws")
    if launch.engine == "vllm" and any(pool.place.nodes > 1 and not pool.every_node_serves for pool in launch.pools):
        raise ExportError("KServe's templates spread data-parallel ranks over nodes, not tensor or pipeline parallelism")


def _pool(launch: Launch, pool: LaunchPool, options: TargetOptions) -> Document:
    layout = pool.pool.layout
    # SGLang counts the ranks of attention data parallelism in its tensor-parallel size
    parallelism: Document = {"tensor": layout.tp * (layout.dp if launch.engine == "sglang" else 1)}
    pod = _pod(launch, pool, options)
    found: Document = {"replicas": pool.instances, "parallelism": parallelism, "template": pod}
    if pool.place.nodes == 1:
        return found
    local = layout.dp // pool.place.nodes
    parallelism |= {"data": layout.dp, "dataLocal": local, "dataRPCPort": RPC_PORT, "expert": layout.ep > 1}
    return found | {"worker": pod}


def _pod(launch: Launch, pool: LaunchPool, options: TargetOptions) -> Document:
    """KServe merges this into its own template: probes, ports and the command are there."""
    main = container(launch, pool, pool.head, options, PodShape(), {}, serves=False)
    if launch.engine == "sglang":
        main["args"] = runtime_arguments(pool)
    else:
        main["env"].append({"name": "VLLM_ADDITIONAL_ARGS", "value": additional(pool)})
    spec = pod_spec(launch, pool, main)
    del main["volumeMounts"]
    spec["volumes"] = [{"name": "dshm", "emptyDir": {"medium": "Memory", "sizeLimit": SHARED_MEMORY}}]
    return spec


def additional(pool: LaunchPool) -> str:
    """The other options as words for a shell."""
    set_by_kserve = OWN + SPREAD if pool.place.nodes > 1 else OWN
    kept = [argument for argument in pool.head.arguments if argument.flag not in set_by_kserve]
    return escaped(words(value for argument in kept for value in argument.words()))


def runtime_arguments(pool: LaunchPool) -> list[str]:
    """The options that the SGLang preset does not set. Raises ExportError for a value that only a shell works out."""
    process = pool.head
    known = known_variables(process, PodShape())
    found: list[str] = []
    for argument in process.arguments:
        if argument.flag not in OF_SGLANG_RUNTIME:
            texts = [kubernetes_text(literal_of(value, known)) for value in argument.words()]
            if None in texts:
                raise ExportError(f"kserve hands over no value that a shell works out: {argument.flag}")
            found += [text for text in texts if text is not None]
    return found


TARGET = Target(
    name="kserve",
    title="KServe LLMInferenceService",
    render=_render,
    apply="kubectl apply -f service.yaml",
    validate="kubectl apply --dry-run=server -f service.yaml",
)
