"""Every option of every known release has a class: read, changing the verdict without a model, or harmless."""

from __future__ import annotations

import pytest

from search_spaces.effects import load_effects
from search_spaces.loader import load_engine, resolve_version, version_notes
from search_spaces.options import load_options, option_history, releases
from search_spaces.schema import EngineSpec

ENGINES = ("vllm", "sglang", "trtllm")
RELEASES = [(engine, release) for engine in ENGINES for release in releases(engine)]


def knob_options(engine: EngineSpec) -> set[str]:
    flags = [s.name for knob in engine.knobs for s in knob.spellings if s.kind == "flag"]
    spelled = {*flags, *(name.partition(".")[0] for name in flags)}
    return spelled | {renamed.name for renamed in engine.renamed}


@pytest.mark.parametrize(("engine", "release"), RELEASES)
def test_every_option_has_a_class(engine, release):
    effects, knobs = load_effects(engine), knob_options(load_engine(engine))
    options = [option.flags[0] for option in load_options(engine, release).options]
    assert [name for name in options if name not in knobs and not effects.classified(name)] == []


@pytest.mark.parametrize("engine", ENGINES)
def test_a_class_names_options_that_exist(engine):
    effects = load_effects(engine)
    known = {flag for option in option_history(engine).options for flag in option.flags}
    exact = [*effects.read, *(n for change in effects.changes for n in change.options), *effects.harmless]
    assert [name for name in exact if "*" not in name and name not in known and not name.startswith("--no-")] == []


@pytest.mark.parametrize(
    ("engine", "option", "value", "touches"),
    [
        ("vllm", "--decode-context-parallel-size", "8", True),
        ("vllm", "--decode-context-parallel-size", "1", False),
        ("vllm", "--cpu-offload-gb", "0", False),
        ("vllm", "--load-format", "gguf", True),
        ("vllm", "--load-format", "auto", False),
        ("vllm", "--attention-backend", "auto", False),
        ("sglang", "--dcp-size", "2", True),
        ("sglang", "--kt-cpuinfer", "60", True),
        ("trtllm", "moe_config.use_low_precision_moe_combine", "true", True),
        ("trtllm", "moe_config.use_low_precision_moe_combine", "false", False),
        ("trtllm", "context_parallel_size", "2", True),
        ("trtllm", "kv_cache_config.host_cache_size", "1000000", True),
    ],
)
def test_values_that_change_nothing(engine, option, value, touches):
    change = load_effects(engine).change(option)
    assert change is not None
    assert change.touches(value) is touches


def test_switches_of_one_engine_have_no_class_at_another():
    assert load_effects("vllm").change("--port") is None
    assert load_effects("vllm").classified("--port")
    assert not load_effects("vllm").classified("--kt-cpuinfer")


@pytest.mark.parametrize("engine", ENGINES)
def test_every_version_has_its_list(engine):
    spec = load_engine(engine)
    lists = [release for v in spec.versions if (release := spec.options_of(v.version))]
    assert set(lists) <= set(releases(engine))
    counts = [len(load_options(engine, release).options) for release in lists]
    assert counts[-1] > counts[0] > 100


@pytest.mark.parametrize(
    ("engine", "asked", "taken", "said"),
    [
        ("vllm", "0.33.0", "0.33", None),
        ("vllm", "0.11.1", "0.11", "0.11.2"),
        ("vllm", "0.33.2", "0.33", "0.33.0"),
        ("sglang", "0.4.9.post6", "0.4.9", "priced"),
        ("sglang", "0.5.3", "0.5.2", "that of 0.5.2 was used"),
        ("sglang", "0.5.17.post1", "0.5.16", "that of 0.5.16 was used"),
        ("sglang", "0.5.23", "0.5.23", None),
        ("trtllm", "1.3.0rc29", "1.3", None),
        ("trtllm", "1.2.0rc6", "1.2", "that of 1.3.0rc3 was used"),
        ("trtllm", "1.1.0", "1.1", "priced"),
    ],
)
def test_a_version_between_two_known_ones_says_which_list_it_used(engine, asked, taken, said):
    spec = load_engine(engine)
    assert resolve_version(spec, asked) == taken
    notes = version_notes(spec, asked)
    assert notes == () if said is None else said in " ".join(notes)


@pytest.mark.parametrize(
    ("engine", "option", "first", "last"),
    [
        ("sglang", "--enable-deepep-moe", "0.4.6.post5", "0.5.2"),
        ("sglang", "--attn-dp-size", "0.5.23", "0.5.23"),
        ("vllm", "--offload-group-size", "0.17.0", "0.33.0"),
        ("vllm", "--no-enable-prefix-caching", "0.11.2", "0.33.0"),
        ("trtllm", "--enable-xqa-jit", "1.3.0rc3", "1.3.0rc3"),
        ("trtllm", "--served_model_name", "1.3.0rc29", "1.3.0rc29"),
    ],
)
def test_when_options_came_and_went(engine, option, first, last):
    found = [release for release in releases(engine) if load_options(engine, release).find(option)]
    assert (found[0], found[-1]) == (first, last)
