"""llm-d: kustomize with a DisaggregatedSet (LeaderWorkerSets of an aggregated service) and the router chart's values.

Structure: llm-d/llm-d guides/wide-ep-lws (modelserver/gpu/vllm/disaggregatedset, router/wide-ep-lws.values.yaml) and
guides/pd-disaggregation (modelserver/gpu/sglang/base/disaggregatedset.yaml), 2026; schema of the set: kubernetes-sigs/lws
config/crd/bases/disaggregatedset.x-k8s.io_disaggregatedsets.yaml (v1).
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from autotune.errors import ExportError
from autotune.exporters.base import Argument, Script
from autotune.exporters.launch import Launch, LaunchPool
from autotune.exporters.targets.base import Document, Target, TargetOptions, manifest, router_image, service_name
from autotune.exporters.targets.bash import bench_scripts
from autotune.exporters.targets.leader_worker import SERVES, group_spec
from autotune.exporters.targets.pods import LEADER_WORKER, PodShape, labels, metadata, refuse_unlike, shared_objects

ENGINE_PORT = "8200"
"""Of a decode server, behind the sidecar that sends each prompt to a prefill server first."""
PORT = 8000
CONNECTORS = {"vllm": "nixlv2", "sglang": "sglang"}
"""Engine -> how the sidecar has a prompt handed over (llm-d-router pkg/sidecar)."""
METRICS = ("--enable-metrics",)
"""SGLang tells its queue and its cache only when asked to; vLLM always does (llm-d docs/architecture, SGLang in llm-d)."""
ENGINE_LABEL = "llm-d.ai/engine-type"
"""By which the router knows what an engine calls its metrics."""
SIDECAR = "a routing sidecar (llm-d-routing-sidecar)"


def _render(launch: Launch, options: TargetOptions) -> list[Script]:
    """modelserver.yaml, kustomization.yaml, router.values.yaml, and bench.sh."""
    refuse_unlike(launch, "llmd")
    if launch.engine not in CONNECTORS:
        raise ExportError(f"llmd is written for {', '.join(CONNECTORS)}, not for {launch.engine}: use --format lws")
    name, launch = service_name(launch), with_metrics(launch)
    sets = [_one(launch, pool, options) for pool in launch.pools] if launch.router is None else [_pair(launch, options)]
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": ["modelserver.yaml"],
    }
    files = [
        manifest(
            "modelserver.yaml", [*shared_objects(launch), *sets], f"Model servers of {launch.engine} {launch.version} for llm-d"
        ),
        manifest("kustomization.yaml", [kustomization], "kubectl apply -k ."),
        manifest("router.values.yaml", [_values(launch, name)], "Values of the llm-d router chart"),
    ]
    return [*files, *bench_scripts(launch)]


def with_metrics(launch: Launch) -> Launch:
    """With what the router reads of a server switched on."""
    if launch.engine != "sglang":
        return launch
    switches = tuple(Argument(flag) for flag in METRICS)
    pools = tuple(
        dataclasses.replace(
            pool,
            processes=tuple(dataclasses.replace(made, arguments=(*made.arguments, *switches)) for made in pool.processes),
        )
        for pool in launch.pools
    )
    return dataclasses.replace(launch, pools=pools)


def _one(launch: Launch, pool: LaunchPool, options: TargetOptions) -> Document:
    return {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": metadata(launch, f"{service_name(launch)}-{pool.role}", pool),
        "spec": _labelled(launch, pool, group_spec(launch, pool, options, _shape(launch, pool))),
    }


def _pair(launch: Launch, options: TargetOptions) -> Document:
    """Both pools as roles of one set, which rolls them out together."""
    roles = []
    for pool in launch.pools:
        spec = _labelled(launch, pool, group_spec(launch, pool, options, _shape(launch, pool)))
        if pool.role == "decode":
            for template in _templates(spec):
                if SERVES in template["metadata"]["labels"]:
                    template["spec"]["initContainers"] = [_sidecar(launch, options)]
        roles.append({"name": pool.role, "metadata": {"labels": labels(launch, pool)}, "spec": spec})
    return {
        "apiVersion": "disaggregatedset.x-k8s.io/v1",
        "kind": "DisaggregatedSet",
        "metadata": metadata(launch, service_name(launch)),
        "spec": {"roles": roles},
    }


def _shape(launch: Launch, pool: LaunchPool) -> PodShape:
    port = ENGINE_PORT if pool.role == "decode" else str(PORT)
    return PodShape(launch.engine, LEADER_WORKER.node_rank, LEADER_WORKER.head_address, {"PORT": port})


def _templates(spec: Document) -> list[Any]:
    group = spec["leaderWorkerTemplate"]
    return [group[kind] for kind in ("leaderTemplate", "workerTemplate") if kind in group]


def _labelled(launch: Launch, pool: LaunchPool, spec: Document) -> Document:
    """Labels by which llm-d's router finds servers, on pods that answer."""
    for template in _templates(spec):
        found = template["metadata"]["labels"]
        if SERVES in found:
            found |= {
                "llm-d.ai/inference-serving": "true",
                "llm-d.ai/guide": service_name(launch),
                "llm-d.ai/role": "both" if pool.role == "serve" else pool.role,
                "llm-d.ai/model": label_value(launch.model),
                ENGINE_LABEL: launch.engine,
            }
    return spec


def label_value(text: str) -> str:
    """Text as a label may hold it: 63 characters, letters and digits at both ends."""
    return re.sub(r"[^A-Za-z0-9]+$", "", re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:63]).lstrip("-._")


def _sidecar(launch: Launch, options: TargetOptions) -> Document:
    """Sends each prompt to a prefill server first; of SGLang's it has to know the port where caches are handed over."""
    prefill = next(pool for pool in launch.pools if pool.role == "prefill")
    bootstrap = prefill.head.variables().get("BOOTSTRAP_PORT")
    environment = {"env": [{"name": "SGLANG_BOOTSTRAP_PORT", "value": bootstrap}]} if bootstrap else {}
    connector = CONNECTORS[launch.engine]
    return {
        "name": "routing-proxy",
        "image": router_image(options, SIDECAR),
        "args": [f"--port={PORT}", f"--vllm-port={ENGINE_PORT}", f"--kv-connector={connector}", "--secure-proxy=false"],
        **environment,
        "ports": [{"name": "sidecar", "containerPort": PORT, "protocol": "TCP"}],
        "restartPolicy": "Always",
        "securityContext": {"allowPrivilegeEscalation": False, "runAsNonRoot": True},
    }


def _values(launch: Launch, name: str) -> Document:
    """Where servers listen, and, of a pair, who picks them."""
    found: Document = {"modelServers": {"targetPorts": [{"number": PORT}], "matchLabels": {"llm-d.ai/guide": name}}}
    if launch.router is None:
        return {"router": found}
    import yaml

    screener = {
        "type": "disaggregatedset-rollout-screener",
        "parameters": {
            "scope": {"labelSelector": f"disaggregatedset.x-k8s.io/name={name}"},
            "revisionGating": {"mode": "max-role", "requiredRoles": ["prefill", "decode"]},
        },
    }
    handler = {"type": "disagg-profile-handler", "parameters": {"deciders": {"prefill": "always-disagg-pd-decider"}}}
    kinds = ("prefill-filter", "decode-filter", "queue-scorer", "active-request-scorer")
    config = {
        "apiVersion": "llm-d.ai/v1alpha1",
        "kind": "EndpointPickerConfig",
        "plugins": [screener, {"type": "always-disagg-pd-decider"}, handler, *({"type": kind} for kind in kinds)],
        "schedulingProfiles": [
            {"name": role, "plugins": [{"pluginRef": f"{role}-filter"}, {"pluginRef": "queue-scorer"},
                                       {"pluginRef": "active-request-scorer"}]}
            for role in ("prefill", "decode")
        ],
    }  # fmt: skip
    text = yaml.safe_dump(config, sort_keys=False)
    epp = {"pluginsConfigFile": "pair.yaml", "pluginsCustomConfig": {"pair.yaml": text}}
    return {"router": {"epp": epp, **found}}


TARGET = Target(
    name="llmd",
    title="llm-d (kustomize, DisaggregatedSet, router values)",
    render=_render,
    apply="kubectl apply -k .",
    validate="kubectl apply -k . --dry-run=server",
)
