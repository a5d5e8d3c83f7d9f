"""Programs that start an engine with its own options and some of theirs: NVIDIA Dynamo's workers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Wrapped:
    """An option that the engine never sees."""

    takes_value: bool = True
    roles: Mapping[str, str] = field(default_factory=dict)
    """Which pool of a pair a value makes it; the empty value stands for the option itself."""


DYNAMO_OPTIONS = "--dyn-"
"""How options begin that are Dynamo's alone, in every release."""
ROLE_OF_WORKER = {"prefill": "prefill", "decode": "decode", "agg": "", "aggregated": ""}
DYNAMO = {
    **dict.fromkeys(
        (
            "--endpoint", "--namespace", "--component", "--migration-limit", "--dyn-tool-call-parser", "--dyn-reasoning-parser",
            "--dyn-endpoint-types", "--custom-jinja-template", "--connector", "--request-plane", "--event-plane", "--store-kv",
            "--discovery-backend", "--output-modalities", "--dump-config-to",
        ),
        Wrapped(),
    ),
    **dict.fromkeys(
        (
            "--use-vllm-tokenizer", "--use-sglang-tokenizer", "--durable-kv-events", "--enable-local-indexer",
            "--enable-multimodal",
        ),
        Wrapped(takes_value=False),
    ),
    "--is-prefill-worker": Wrapped(takes_value=False, roles={"": "prefill"}),
    "--is-decode-worker": Wrapped(takes_value=False, roles={"": "decode"}),
}  # fmt: skip
"""dynamo/components/src/dynamo/{vllm,sglang}/args.py."""
DYNAMO_TRTLLM = {
    **DYNAMO,
    **dict.fromkeys(
        (
            "--encode-endpoint", "--modality", "--allowed-local-media-path", "--max-file-size-mb", "--model-loader-extra-config",
            "--conversation-affinity-dp-rank-source",
        ),
        Wrapped(),
    ),
    **dict.fromkeys(
        ("--publish-events-and-metrics", "--publish-kv-events", "--conversation-affinity", "--no-enable-local-indexer"),
        Wrapped(takes_value=False),
    ),
    "--disaggregation-mode": Wrapped(roles={**ROLE_OF_WORKER, "pd": ""}),
    "--disaggregation-strategy": Wrapped(),
}  # fmt: skip
"""dynamo/components/src/dynamo/trtllm/backend_args.py, beside those that are fields of the engine."""
WRAPPERS: Mapping[str, Mapping[str, Wrapped]] = {
    "dynamo.vllm": {**DYNAMO, "--disaggregation-mode": Wrapped(roles=ROLE_OF_WORKER)},
    "dynamo.sglang": DYNAMO,
    "dynamo.trtllm": DYNAMO_TRTLLM,
}
