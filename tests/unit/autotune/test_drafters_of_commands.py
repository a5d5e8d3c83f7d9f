"""Commands that draft with a model of its own weights: read, priced, and written again by the exporters."""

from __future__ import annotations

import json

import pytest

from autotune.auditing.commands import read_command
from autotune.exporters import export
from autotune.predicting.step import predict

DRAFTER = "lightseekorg/kimi-k2.5-eagle3-mla"
VLLM = "vllm serve moonshotai/Kimi-K2.5 --tensor-parallel-size 8 --max-num-seqs 64 --speculative-config "


def read(text, **more):
    return read_command(text, hardware="hgx-b200", isl_tokens=2000, osl_tokens=1000, **more)


def spoken(drafter, method="eagle3"):
    return VLLM + "'" + json.dumps({"model": drafter, "method": method, "num_speculative_tokens": 3}) + "'"


def test_a_known_drafter_is_priced_with_its_published_curve():
    found = read(spoken(DRAFTER))
    pool = found.deployment.pool
    assert (pool.drafter, pool.draft_tokens, found.unmodelled) == (DRAFTER, 3, ())
    assert found.deployment.workload.mtp_acceptance[0] == pytest.approx(0.8)
    assert any("kimi-k2.5 with eagle3 on coding text" in remark for remark in found.remarks)
    lines = {line.name: line.bytes for line in predict(found.deployment).memory}
    assert 0.4e9 < lines["drafter weights"] < 1.0e9  # 1.84 B parameters over 8 ranks, the fuse matrix on each


def test_a_drafter_whose_shapes_are_not_at_hand_is_named_and_not_priced():
    found = read(spoken("someone/kimi-eagle3"))
    assert found.deployment.pool.drafter is None
    assert found.deployment.pool.draft_tokens == 0
    assert "drafter whose shapes are known" in found.unmodelled[0].what


def test_sglang_and_its_trees():
    text = (
        "python -m sglang.launch_server --model-path moonshotai/Kimi-K2.5 --tp-size 8 --speculative-algorithm EAGLE3 "
        f"--speculative-draft-model-path {DRAFTER} --speculative-num-steps 3 --speculative-num-draft-tokens 4 "
    )
    chain, tree = read(text + "--speculative-eagle-topk 1"), read(text + "--speculative-eagle-topk 4")
    assert (chain.deployment.pool.drafter, chain.deployment.pool.draft_tokens, chain.unmodelled) == (DRAFTER, 3, ())
    assert "tree" in tree.unmodelled[0].what


@pytest.mark.parametrize(
    ("engine", "parts"),
    [
        ("vllm", [f'"model":"{DRAFTER}"', '"method":"eagle3"', '"num_speculative_tokens":3']),
        ("sglang", ["--speculative-algorithm EAGLE3", f"--speculative-draft-model-path {DRAFTER}", "--speculative-num-steps 3"]),
        ("trtllm", ["Eagle3", DRAFTER, "max_draft_len"]),
    ],
)
def test_scripts_say_the_drafter_as_each_engine_does(engine, parts):
    deployment = read(spoken(DRAFTER)).deployment
    pool = deployment.pool.model_copy(update={"flags": {}})
    changes = {"engine": {"name": engine}, "precision": "nvfp4", "pools": {"decode": pool.model_dump()}}
    other = type(deployment).model_validate({**deployment.model_dump(), **changes})
    written = " ".join(script.text for script in export(other)).replace(": ", ":").replace("'", "").replace("\\", "")
    written = " ".join(written.split())
    for part in parts:
        assert part in written


@pytest.mark.parametrize(("path", "what"), [("lmsys/DeepSeek-V3-NextN", None), ("some/eagle3-head", "drafts neither of")])
def test_the_module_as_a_checkpoint_of_its_own_is_the_models_own(path, what):
    text = "python -m sglang.launch_server --model-path deepseek-ai/DeepSeek-V3 --tp-size 8 --speculative-algorithm EAGLE "
    found = read_command(f"{text}--speculative-draft-model-path {path}", hardware="hgx-h200", isl_tokens=2000, osl_tokens=1000)
    assert [line.what[: len(what or "")] for line in found.unmodelled] == ([what] if what else [])
