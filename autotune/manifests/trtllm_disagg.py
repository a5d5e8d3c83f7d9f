"""The file of `trtllm-serve disaggregated`: context and generation servers with settings (llmapi/disagg_utils.py, 1.3.0rc3)."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from autotune.documents.deployment import PoolRole
from autotune.errors import ProblemError
from autotune.manifests.service import EngineService, Manifest, inner, listing, whole
from autotune.manifests.source import Source

SECTIONS: dict[str, PoolRole] = {"context_servers": "prefill", "generation_servers": "decode"}
OF_THE_ROUTER = ("hostname", "port", "max_retries", "perf_metrics_max_requests", "conditional_disagg_config", "otlp_config",
                 "disagg_cluster", "node_id", "schedule_style", "model", *SECTIONS)  # fmt: skip
OF_THE_POOL = ("num_instances", "urls", "router", "model")


def recognises(source: Source) -> bool:
    """Whether a document names the servers of a pair."""
    return any(is_servers_file(document) for document in source.documents)


def is_servers_file(document: Mapping[str, Any]) -> bool:
    """Whether a document has a section of servers."""
    return "apiVersion" not in document and any(isinstance(document.get(name), dict) for name in SECTIONS)


def read(source: Source) -> Manifest:
    """Both pools of the file."""
    return server_pools(next(document for document in source.documents if is_servers_file(document)), source.path)


def ports_of(document: Mapping[str, Any]) -> Iterator[tuple[str, PoolRole]]:
    """(port, side) of every server."""
    for name, role in SECTIONS.items():
        for url in listing(inner(document, name).get("urls"), f"{name}.urls"):
            yield str(url).rpartition(":")[2], role


def server_pools(document: Mapping[str, Any], where: object) -> Manifest:
    """Both pools with their settings; what stands at the top is every server's.

    Raises ProblemError for a file that names addresses alone, whose servers have settings of their own.
    """
    shared = {key: value for key, value in document.items() if key not in OF_THE_ROUTER}
    services = tuple(_services(document, shared, where))
    return Manifest("file of trtllm-serve disaggregated", services, remarks=("router: trtllm-serve disaggregated, not judged",))


def _services(document: Mapping[str, Any], shared: Mapping[str, Any], where: object) -> Iterator[EngineService]:
    for name, role in SECTIONS.items():
        if document.get(name) is None:
            continue
        section = inner(document, name)
        if clash := [key for key in shared if key in section and section[key] != shared[key]]:
            raise ProblemError(
                f"{where}: {clash[0]} is said for all servers and, otherwise, for {name}: TensorRT-LLM refuses that"
            )
        settings = {key: value for key, value in {**shared, **section}.items() if key not in OF_THE_POOL}
        if not set(settings) - {"backend"}:
            raise ProblemError(
                f"{where}: {name} are addresses alone, each server has settings of its own: give the script that starts them"
            )
        model = section.get("model") or document.get("model")
        urls = listing(section.get("urls"), f"{name}.urls")
        count = section.get("num_instances", len(urls) or 1)
        words = ["trtllm-serve", *([str(model)] if model else []), "--config", json.dumps(settings)]
        yield EngineService(name=name, text=shlex.join(words), role=role, instances=whole(count, f"{name}.num_instances", 1))
