"""Every knob of an engine's document is written into scripts and read from commands, or named as unsupported.

The commands are composed from the documents alone: a knob that is added as data needs no code to be written and read.
"""

from __future__ import annotations

import json

import pytest

from autotune.auditing.commands import read_command
from autotune.documents.deployment import Deployment
from autotune.exporters import export
from search_spaces.loader import engine_names, load_engine
from search_spaces.schema import EngineSpec, Knob, Spelling, Value
from search_spaces.spelling import spelled

KNOBS = [(name, knob.name) for name in engine_names() for knob in load_engine(name).knobs]
HARDWARE = {"vllm": "gb200-nvl72", "sglang": "gb200-nvl72", "vllm-ascend": "ascend-910b2", "trtllm": "gb200-nvl72"}
COMMANDS = {
    "vllm": "vllm serve deepseek-ai/DeepSeek-V3 --data-parallel-size 8 --enable-expert-parallel",
    "vllm-ascend": "vllm serve vllm-ascend/DeepSeek-V3-W8A8 --data-parallel-size 8 --enable-expert-parallel",
    "sglang": "sglang serve --model-path deepseek-ai/DeepSeek-V3 --tp-size 8 --dp-size 8 --enable-dp-attention",
    "trtllm": "trtllm-serve deepseek-ai/DeepSeek-V3 --tp_size 8 --ep_size 8",
}
SETTINGS = {"enable_attention_dp": True}
"""Of TensorRT-LLM, whose options are mostly fields of a file."""


def newest_with(engine: EngineSpec, knob: Knob) -> tuple[str, Spelling]:
    versions = [v.version for v in engine.versions if knob.spelling(v.version)]
    assert versions, f"no known version has {knob.name}: nothing to write or read"
    spelling = knob.spelling(versions[-1])
    assert spelling is not None
    return versions[-1], spelling


def another_value(knob: Knob, version: str) -> Value:
    """A value that is neither the default nor left unwritten."""
    if knob.kind == "bool":
        return True
    if knob.kind == "categorical":
        return next(
            c.value for c in reversed(knob.choices_in(version)) if c.value not in (knob.default(version), *knob.unwritten)
        )
    return 0.5 if knob.kind == "float" else max(int(knob.minimum or 0), 1) + 1


@pytest.mark.parametrize(("name", "knob_name"), KNOBS)
def test_a_knob_is_read_from_what_it_is_spelled_as(name, knob_name):
    engine = load_engine(name)
    knob = engine.knob(knob_name)
    assert knob is not None
    if knob.unsupported:
        return
    version, spelling = newest_with(engine, knob)
    value = another_value(knob, version)
    option, _, field = spelling.name.partition(".")
    text = "" if value is True and spelling.kind == "flag" else str(int(value) if isinstance(value, bool) else value)
    said = f"{option} '{json.dumps({field: value})}'" if field else f"{option} {text}"
    if name == "trtllm":
        held = {**SETTINGS, **({option: {field: value} if field else value} if spelling.kind == "flag" else {})}
        said = f"--config '{json.dumps(held)}'"
    command = (
        f"{COMMANDS[name]} {said}"
        if spelling.kind == "flag"
        else f"{option}={text} {COMMANDS[name]} {said if name == 'trtllm' else ''}"
    )
    if knob_name == "draft_tokens":  # counted otherwise by each engine
        drafts = {"vllm": '--speculative-config \'{"method":"mtp","num_speculative_tokens":2}\'',
                  "sglang": "--speculative-algorithm NEXTN --speculative-num-steps 2",
                  "trtllm": "--config '{speculative_config: {decoding_type: MTP, num_nextn_predict_layers: 2}}'"}  # fmt: skip
        command, value = f"{COMMANDS[name]} {drafts[name]}", 2
    found = read_command(command, hardware=HARDWARE[name], version=version, isl_tokens=500, osl_tokens=500)
    assert found.deployment.pool.flags[knob_name] == value


@pytest.mark.parametrize(("name", "knob_name"), KNOBS)
def test_a_knob_is_written_where_a_plan_sets_it(name, knob_name):
    engine = load_engine(name)
    knob = engine.knob(knob_name)
    assert knob is not None
    if knob.unsupported:
        return
    version, spelling = newest_with(engine, knob)
    flags: dict[str, Value] = {knob_name: another_value(knob, version)}
    if knob.needs:
        needed = engine.knob(knob.needs)
        assert needed is not None, f"{knob.name} needs {knob.needs}, which is no knob of {name}"
        assert knob.name not in str(spelled(engine, version, flags, "decode")), "idle without it"
        flags[knob.needs] = another_value(needed, version)
    if knob.emit == "by_exporter":
        assert spelling.name.rpartition(".")[2] in exported(name, version)
        return
    found = spelled(engine, version, flags, knob.roles[0])
    option, _, field = spelling.name.partition(".")
    if spelling.kind == "env":
        assert spelling.name in found.environment
    elif field:
        assert found.options[option] == {field: flags[knob_name]}
    else:
        assert found.options[option] == (None if flags[knob_name] is True else flags[knob_name])
    for value in knob.unwritten:
        assert option not in spelled(engine, version, {**flags, knob_name: value}, knob.roles[0]).options


def exported(name: str, version: str) -> str:
    """The script of a decode pool that uses everything its exporter composes."""
    backend = "deepep" if name == "sglang" else "deepep_low_latency"
    pool = {"dp": 8, "ep": 8, "batch_per_dp_rank": 64, "draft_tokens": 1, "all2all_backend": "deepep_low_latency",
            "flags": {"all2all_backend": backend}}  # fmt: skip
    if name == "trtllm":
        pool |= {"all2all_backend": "nvlink_one_sided", "flags": {}}
    document = {
        "hardware": HARDWARE[name],
        "model": "deepseek-v3",
        "precision": "fp8-block",
        "engine": {"name": name, "version": version},
        "workload": {"isl_tokens": 500, "osl_tokens": 500, "mtp_acceptance": [0.8]},
        "pools": {"decode": pool},
    }
    return "".join(script.text for script in export(Deployment.model_validate(document)))


def knob(**changes) -> Knob:
    fields = {"name": "prefix_caching", "doc": "", "kind": "bool", "defaults": [{"value": True}], "source": ""}
    spelling = {"kind": "flag", "name": "--enable-prefix-caching", "off": "--no-enable-prefix-caching"}
    return Knob.model_validate({**fields, "spellings": [spelling], **changes})


@pytest.mark.parametrize(
    ("changes", "flags", "expected"),
    [
        ({}, {}, {}),
        ({}, {"prefix_caching": True}, {"--enable-prefix-caching": None}),
        ({}, {"prefix_caching": False}, {"--no-enable-prefix-caching": None}),
        ({"emit": "always"}, {}, {"--enable-prefix-caching": None}),
        ({"emit": "always"}, {"prefix_caching": False}, {"--no-enable-prefix-caching": None}),
        ({"roles": ["prefill"]}, {"prefix_caching": True}, {}),
        ({"unwritten": [True]}, {"prefix_caching": True}, {}),
        (
            {"spellings": [{"kind": "flag", "name": "--kv-config.cache"}]},
            {"prefix_caching": True},
            {"--kv-config": {"cache": True}},
        ),
    ],
)
def test_an_entry_alone_makes_an_unpriced_knob(changes, flags, expected):
    engine = load_engine("vllm").model_copy(update={"knobs": (knob(**changes),)})
    assert spelled(engine, "0.33", flags, "decode").options == expected
