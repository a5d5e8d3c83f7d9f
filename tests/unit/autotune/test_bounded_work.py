"""Work is bounded before it starts, and what would be placed or read is checked first."""

from __future__ import annotations

import random

import numpy as np
import pytest

from autotune.auditing.bash.interpreter import Interpreter
from autotune.auditing.bash.values import Values
from autotune.auditing.shell import find_command
from autotune.errors import ProblemError
from autotune.placement.loads import Loads
from autotune.placement.placing import Placement, place, place_again
from autotune.searching.pools import search
from cost_models.catalog import load_model

MODEL = load_model("qwen3-235b-a22b")
LOADS = Loads(("a",), np.random.default_rng(0).integers(1, 1000, (1, 94, 128)).astype(float))


@pytest.fixture(scope="module")
def placed() -> Placement:
    return place(LOADS, MODEL, 8, 0, 8)


def changed(placed: Placement, change) -> Placement:
    experts = [[list(gpu) for gpu in layer] for layer in placed.experts]
    change(experts)
    return placed.model_copy(update={"experts": tuple(tuple(tuple(gpu) for gpu in layer) for layer in experts)})


def lose(experts) -> None:
    experts[3][0][0] = experts[3][1][0]


MAPS = {
    "an expert nowhere": (lose, r"no replica of expert \d+ in layer 3 \(1 such\)"),
    "a foreign expert": (lambda e: e[0][0].__setitem__(0, 128), "has expert 128 in layer 0; .* has 0..127"),
    "a negative expert": (lambda e: e[0][0].__setitem__(0, -1), "has expert -1"),
    "ragged": (lambda e: e[0][0].pop(), "differ in size: 8 GPUs x 15 slots, 8 GPUs x 16 slots"),
    "a GPU less": (lambda e: e[5].pop(), "differ in size"),
    "empty": (lambda e: [gpu.clear() for layer in e for gpu in layer], "8 GPUs x 0 slots"),
    "no GPU": (lambda e: [layer.clear() for layer in e], "0 GPUs"),
    "a layer less": (lambda e: e.pop(), "with 93 layers"),
}


@pytest.mark.parametrize(("change", "message"), MAPS.values(), ids=MAPS.keys())
def test_a_map_to_change_must_hold_every_expert(placed, change, message):
    with pytest.raises(ProblemError, match=message):
        place_again(LOADS, MODEL, changed(placed, change), 4, 8)


@pytest.mark.parametrize(("gpus", "redundant"), [(8, 100_000), (8, 520), (2, 130), (1, 1)])
def test_more_replicas_than_gpus_can_use_are_refused(gpus, redundant):
    """An expert once on each GPU, at most four times more than once in the mean: 128 x min(gpus - 1, 4)."""
    with pytest.raises(ProblemError, match=f"{128 * min(gpus - 1, 4):,} at most"):
        place(LOADS, MODEL, gpus, redundant, gpus)


@pytest.mark.parametrize("lines", [500, 2000])
def test_a_script_is_read_in_proportion_to_its_lines(monkeypatch, lines):
    """Whatever quotes do: what stands on a line is looked at a bounded number of times."""
    rng, looked = random.Random(lines), []
    real = Values._pieces
    monkeypatch.setattr(Values, "_pieces", lambda self, node: looked.append(1) or real(self, node))
    for text in (
        "x='" + "\n".join("export A=b" for _ in range(lines)),
        "\n".join('x="\\"' for _ in range(lines)),
        "\n".join(rng.choice(["x='", 'y="', "z=\\", "# it's", "a b"]) for _ in range(lines)),
    ):
        looked.clear()
        Interpreter({}).run(text)
        assert len(looked) <= 4 * lines


def test_variables_of_variables_do_not_grow_without_end():
    text = "A0=xxxxxxxxxx\n" + "".join(f"A{i + 1}=$A{i}$A{i}\n" for i in range(40)) + "vllm serve m --x $A40\n"
    with pytest.raises(ProblemError, match="more than 1,000,000 characters"):
        find_command(text)
    assert find_command("A=$((" + "1+" * 5000 + "1))\nvllm serve m").words == ("m",)


def test_an_engine_without_knobs_is_searched():
    from autotune.documents.problem import Problem

    plan = search(Problem(hardware="hgx-h200", target="prefill", engine="trtllm", trials=3)).plans[0]
    assert plan.flags.space_size == 1
