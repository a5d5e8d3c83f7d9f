"""What fields of TensorRT-LLM's settings file exclude in one another (1.3.0rc3)."""

from __future__ import annotations

import json

import numpy as np

from search_spaces.rules.rule import Rule
from search_spaces.rules.subject import Bools, Subject

TRTLLM = ("trtllm",)
SIZES, MOST = "cuda_graph_config.batch_sizes", "cuda_graph_config.max_batch_size"
UNBALANCED = ("VANILLA", "TRITON")
"""Expert kernels that take no load balancer."""


def _graph_sizes(subject: Subject) -> tuple[int, int] | None:
    """(largest size that is listed, largest that is said), where both are given."""
    listed, most = subject.option(SIZES), subject.option(MOST)
    if listed is None or most is None or not listed.startswith("[") or not most.isdigit() or most == "0":
        return None
    sizes = [size for size in json.loads(listed) if isinstance(size, int)]
    return (max(sizes), int(most)) if sizes else None


def _contradict(subject: Subject) -> Bools:
    sizes = _graph_sizes(subject)
    return subject.all(sizes is not None and sizes[0] != sizes[1])


def _contradict_text(subject: Subject) -> str:
    sizes = _graph_sizes(subject)
    assert sizes is not None
    return f"{SIZES} goes up to {sizes[0]}, {MOST} is {sizes[1]}: give one of the two"


def _slots(subject: Subject) -> Bools:
    """Rows with more slots than experts."""
    return np.asarray(subject.rows.redundant_experts > 0)


RULES = (
    Rule(
        name="balancer_with_attention_dp",
        says="TensorRT-LLM's expert load balancer works with attention DP and expert parallelism only.",
        source="_torch/modules/fused_moe/interface.py:329 (1.3.0rc3)",
        engines=TRTLLM,
        broken=lambda s: np.asarray(_slots(s) & ~((s.rows.dp > 1) & (s.rows.ep > 1))),
        because=lambda s: (
            f"slots for {int(s.rows.redundant_experts[0])} copies of experts need enable_attention_dp and expert parallelism: "
            f"dp is {int(s.rows.dp[0])}, ep {int(s.rows.ep[0])}"
        ),
    ),
    Rule(
        name="balancer_of_the_kernels",
        says="TensorRT-LLM's VANILLA and TRITON expert kernels take no load balancer.",
        source="_torch/modules/fused_moe/interface.py:328 and :399, fused_moe_triton.py, fused_moe_vanilla.py (1.3.0rc3)",
        engines=TRTLLM,
        broken=lambda s: np.asarray(_slots(s) & (s.option("moe_config.backend") in UNBALANCED)),
        because=lambda s: f"moe_config.backend {s.option('moe_config.backend')} takes no load balancer: CUTLASS or TRTLLM do",
    ),
    Rule(
        name="graph_sizes_agree",
        says="TensorRT-LLM's list of CUDA-graph sizes and their largest are one thing.",
        source="llmapi/llm_args.py validate_cuda_graph_config (1.3.0rc3)",
        engines=TRTLLM,
        broken=_contradict,
        because=_contradict_text,
    ),
    Rule(
        name="split_output_with_attention_dp",
        says="TensorRT-LLM splits the output layer over attention-DP ranks only where there are some.",
        source="mapping.py:151 (1.3.0rc3)",
        engines=TRTLLM,
        broken=lambda s: np.asarray((s.rows.dp == 1) & (s.option("enable_lm_head_tp_in_adp") == "true")),
        because=lambda _: "enable_lm_head_tp_in_adp needs enable_attention_dp",
    ),
)
