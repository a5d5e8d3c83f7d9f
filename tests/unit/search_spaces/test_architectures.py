"""Which release has a model's architecture: spans by hand, and the architecture of every preset."""

from __future__ import annotations

import pytest

from cost_models.catalog import load_model, model_names
from cost_models.huggingface.registry import ARCHITECTURES
from search_spaces.architectures import ArchitectureReleases, architecture_releases

TABLE = ArchitectureReleases(read=("0.8.0", "0.33.0"), releases={"New": ("0.20.0",), "Gone": ("0.9.2", "0.23.0"), "Never": ()})


@pytest.mark.parametrize(
    ("architecture", "release", "said"),
    [
        ("New", "0.19.1", "0.20.0 is the first that has it"),
        ("New", "0.20.0", None),
        ("New", "0.34.0", None),
        ("Gone", "0.23.0", None),
        ("Gone", "0.24.0", "0.23.0 is the last that has it"),
        ("Gone", "0.34.0", None),  # nobody looked
        ("Never", "0.33.0", "none to 0.33.0 has it"),
        ("New", "0.7.3", None),  # nobody looked
        ("Unknown", "0.19.1", None),
    ],
)
def test_a_release_without_an_architecture_says_which_has_it(architecture, release, said):
    assert TABLE.without(architecture, release) == said


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_every_architecture_of_a_preset_was_looked_for(engine):
    found = set(architecture_releases(engine).releases)
    assert {load_model(name).architecture for name in model_names()} <= found <= set(ARCHITECTURES)


def test_presets_say_what_engines_know_them_by():
    assert load_model("deepseek-v4-pro").architecture == "DeepseekV4ForCausalLM"
    assert all(load_model(name).architecture in ARCHITECTURES for name in model_names())
