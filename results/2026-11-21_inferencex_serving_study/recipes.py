"""The benchmark's public launch recipes -> what a worker of each deployment takes at once, as a table.

usage: python recipes.py COMMIT=FOLDER ... > deployments.csv

FOLDER : a checkout of that commit of NVIDIA/srt-slurm (Apache-2.0), whose recipes the disaggregated runs of DeepSeek-R1 were
launched with; only numbers are taken. Recipes with drafts and of other models are left out. One row a recipe and concurrency; a
recipe that names none has an empty one.
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

Recipe = dict[str, Any]
FOLDER = re.compile(
    r"^(?:trtllm/)?(b200|b300|gb200|gb300|h100|h200)(?:-(fp4|fp8))?/(1k1k|1k8k|8k1k)(?:/stp)?(?:/[^/]*|_stp_[^/]*|\.yaml)$"
)
DRAFTS = re.compile(r"mtp(?!0)")
LENGTHS = {"1k": "1024", "8k": "8192"}
SGLANG = {
    "tp": ("tp-size", "tensor-parallel-size"),
    "dp": ("dp-size", "data-parallel-size"),
    "ep": ("ep-size", "expert-parallel-size"),
}
KERNELS = {"TRTLLM": "trtllm_gen", "CUTLASS": "cutlass", "DEEPGEMM": "deepgemm", "CUTEDSL": "cutedsl", "WIDEEP": "wideep"}
TABLE_COLUMNS = (
    "engine,system,precision,isl,osl,concurrency,p_workers,d_workers,p_gpus,d_gpus,p_dp,d_dp,p_ep,d_ep,"
    "prefill_tokens,prefill_prompts,decode_slots,look_steps,prefill_deepep,decode_deepep,prefill_absorbs,p_placed,d_placed,p_kernel,d_kernel,routers,commit,recipe"
).split(",")


def first(options: Recipe, *names: str, default: int = 0) -> int:
    """The first of the options that is given; a size of -1 means that there is no limit."""
    return max(int(next((options[name] for name in names if options.get(name) is not None), default)), 0)


def merged(base: Recipe, override: Recipe) -> Recipe:
    """An override inside its base."""
    return base | {
        k: merged(base[k], v) if isinstance(v, dict) and isinstance(base.get(k), dict) else v for k, v in override.items()
    }


def picked(value: Any, index: int, count: int) -> Any:
    """A zipped override's value: one of a list as long as the override has variants."""
    if isinstance(value, dict):
        return {name: picked(each, index, count) for name, each in value.items()}
    return value[index] if isinstance(value, list) and len(value) == count else value


def longest(value: Any) -> int:
    """Variants of a zipped override."""
    if isinstance(value, dict):
        return max((longest(each) for each in value.values()), default=1)
    return len(value) if isinstance(value, list) else 1


def variants(document: Recipe) -> Iterator[Recipe]:
    """The launches of one file."""
    if "base" not in document:
        yield document
        return
    overrides = {name: part for name, part in document.items() if "override" in name and "mtp" not in name and part}
    if not overrides:
        yield document["base"]
    for name, part in overrides.items():
        count = longest(part) if name.startswith("zip") else 1
        for index in range(count):
            yield merged(document["base"], picked(part, index, count) if count > 1 else part)


def routers(recipe: Recipe) -> int:
    """Front ends behind a proxy (_compute_frontend_topology of srtctl/cli/mixins/frontend_stage.py): ten unless said, one a node but the head."""
    told, resources = recipe.get("frontend") or {}, recipe.get("resources") or {}
    nodes = sum(int(resources.get(f"{side}_nodes") or 0) for side in ("prefill", "decode"))
    if nodes < 2 or told.get("enable_multiple_frontends") is False:
        return 1
    return min(int(told.get("num_additional_frontends", 9)) + 1, nodes - 1)


def concurrencies(recipe: Recipe) -> list[str]:
    named = (recipe.get("benchmark") or {}).get("concurrencies")
    if isinstance(named, list):
        return [str(each) for each in named]
    return str(named).split("x") if named else [""]


def sglang(prefill: Recipe, decode: Recipe) -> Recipe:
    """Chunks and running requests are given for an engine and shared by its attention-DP ranks; the prefill limit is a rank's."""
    sizes = {
        f"{side}_{name}": first(o, *SGLANG[name], default=1) for side, o in (("p", prefill), ("d", decode)) for name in SGLANG
    }
    p_dp, d_dp = sizes["p_dp"], sizes["d_dp"]
    chunk = first(prefill, "chunked-prefill-size") // p_dp
    limits = [limit for limit in (chunk, first(prefill, "max-prefill-tokens"), first(prefill, "max-total-tokens")) if limit]
    return {
        "p_gpus": sizes["p_tp"], "d_gpus": sizes["d_tp"], "p_dp": p_dp, "d_dp": d_dp, "p_ep": sizes["p_ep"], "d_ep": sizes["d_ep"],
        "prefill_tokens": min(limits, default=0), "prefill_prompts": first(prefill, "max-running-requests") // p_dp,
        "decode_slots": first(decode, "max-running-requests") // d_dp,
        "look_steps": first(decode, "scheduler-recv-interval", default=1),
        "prefill_absorbs": int(bool(prefill.get("disable-chunked-prefix-cache"))),
        **{f"{name}_deepep": int(o.get("moe-a2a-backend") == "deepep") for name, o in (("prefill", prefill), ("decode", decode))},
        **{f"{side}_placed": int(bool(o.get("enable-eplb") or o.get("init-expert-location"))) for side, o in (("p", prefill), ("d", decode))},
    }  # fmt: skip


def trtllm(prefill: Recipe, decode: Recipe) -> Recipe:
    """All limits are a rank's."""
    gpus = [first(o, "tensor_parallel_size", default=1) for o in (prefill, decode)]
    dp = [n if o.get("enable_attention_dp") else 1 for n, o in zip(gpus, (prefill, decode), strict=True)]
    ep = [first(o, "moe_expert_parallel_size", default=1) for o in (prefill, decode)]
    return {
        "p_gpus": gpus[0], "d_gpus": gpus[1], "p_dp": dp[0], "d_dp": dp[1], "p_ep": ep[0], "d_ep": ep[1],
        "prefill_tokens": first(prefill, "max_num_tokens"), "prefill_prompts": first(prefill, "max_batch_size"),
        "decode_slots": first(decode, "max_batch_size"), "look_steps": 1, "prefill_deepep": 0, "decode_deepep": 0,
        "prefill_absorbs": 0,
        **{f"{side}_placed": int("load_balancer" in (o.get("moe_config") or {})) for side, o in (("p", prefill), ("d", decode))},
        **{f"{side}_kernel": KERNELS[(o.get("moe_config") or {})["backend"]] for side, o in (("p", prefill), ("d", decode))},
    }  # fmt: skip


def rows(commit: str, path: Path, name: str) -> Iterator[Recipe]:
    """Rows of one recipe file; none for files of other kinds."""
    found = FOLDER.match(name)
    if not found or DRAFTS.search(name) or "glm" in name:
        return
    system, precision, lengths = found.groups()
    for recipe in variants(yaml.safe_load(path.read_text(encoding="utf-8"))):
        backend, resources = recipe.get("backend") or {}, recipe.get("resources") or {}
        engine = "trtllm" if backend.get("type") == "trtllm" else "sglang"
        sides = backend.get(f"{engine}_config") or {}
        if "prefill" not in sides or "decode" not in sides:
            continue
        limits = (trtllm if engine == "trtllm" else sglang)(sides["prefill"], sides["decode"])
        for concurrency in concurrencies(recipe):
            yield {
                "engine": engine, "system": system, "precision": precision or "fp8",
                "isl": LENGTHS[lengths[:2]], "osl": LENGTHS[lengths[2:]], "concurrency": concurrency,
                "p_workers": resources.get("prefill_workers") or 1, "d_workers": resources.get("decode_workers") or 1,
                "routers": routers(recipe), "commit": commit, "recipe": name, **limits,
            }  # fmt: skip


def found(commit: str, folder: Path) -> Iterator[Recipe]:
    """Rows of all recipes of one commit."""
    for path in sorted(folder.rglob("*.yaml")):
        yield from rows(commit, path, path.relative_to(folder).as_posix())


def main() -> None:
    """Print the table."""
    writer = csv.DictWriter(sys.stdout, TABLE_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for argument in sys.argv[1:]:
        commit, _, folder = argument.partition("=")
        writer.writerows(found(commit, Path(folder) / "recipes"))


if __name__ == "__main__":
    main()
