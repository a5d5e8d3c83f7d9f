#!/usr/bin/env python3
"""Option lists of engine releases -> search_spaces/data/options/<engine>.json.

dump:  run where the release can be imported (its wheel unpacked with --no-deps beside a venv that has its libraries; no GPU is
       needed, compiled parts may be stubs): prints what the engine's own parser accepts, hidden spellings included.
       PYTHONPATH=/engines/vllm-0.33.0 python scripts/engine_options.py dump vllm 0.33.0 > vllm_0.33.0.json
merge: python scripts/engine_options.py merge vllm "how they were read" vllm_*.json > search_spaces/data/options/vllm.json
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import itertools
import json
import pathlib
import re
import sys
from typing import Any

HIDDEN = re.compile(r"\b(SGLANG_[A-Z0-9_]+[A-Z0-9]|SGL_[A-Z0-9_]+[A-Z0-9])\b")


def parser_of(engine: str) -> argparse.ArgumentParser:
    """The parser that the engine's own command uses."""
    if engine == "sglang":
        from sglang.srt.server_args import ServerArgs

        parser = argparse.ArgumentParser(prog="sglang")
        ServerArgs.add_cli_args(parser)
        return parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    places = (f"vllm.entrypoints.{where}.cli_args" for where in ("common", "launchers", "openai"))
    found = next(
        place for place in places if importlib.util.find_spec(place.rpartition(".")[0]) and importlib.util.find_spec(place)
    )
    make_arg_parser = importlib.import_module(found).make_arg_parser

    return make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))


def described(action: argparse.Action, spellings: list[str]) -> dict[str, Any]:
    """One option; `spellings` holds those that the help does not show too."""
    name = type(action).__name__
    kind = getattr(action.type, "__name__", None) or name
    found: dict[str, Any] = {"flags": [*action.option_strings, *(s for s in spellings if s not in action.option_strings)]}
    found["type"] = name if action.nargs == 0 or name == "BooleanOptionalAction" else kind
    if action.nargs is not None:
        found["nargs"] = action.nargs
    if action.choices:
        found["choices"] = [c if isinstance(c, (str, int)) or c is None else str(c) for c in action.choices]
    return found


def dump(engine: str, release: str) -> dict[str, Any]:
    """What a release takes."""
    parser = parser_of(engine)
    spellings: dict[int, list[str]] = {}
    for spelling, action in parser._option_string_actions.items():
        spellings.setdefault(id(action), []).append(spelling)
    options = [described(action, spellings[id(action)]) for action in parser._actions if action.option_strings]
    return {"engine": engine, "release": release, "options": options, "env": variables(engine)}


def variables(engine: str) -> list[str]:
    """Variables that the engine reads: vLLM declares them, SGLang's stand in its sources."""
    if engine == "vllm":
        import vllm.envs

        return sorted(vllm.envs.environment_variables)
    import sglang

    files = pathlib.Path(sglang.__file__).parent.rglob("*.py")
    return sorted({name for file in files for name in HIDDEN.findall(file.read_text(errors="replace"))})


def key(release: str) -> tuple[int, ...]:
    """What releases sort by."""
    parts = release.replace("post", "").replace("0rc", "-1.").split(".")  # 1.3.0rc9 < 1.3.0rc29 < 1.3.0
    return tuple(int(part) for part in parts if part.lstrip("-").isdigit())


def merged(engine: str, how: str, dumps: list[dict[str, Any]]) -> dict[str, Any]:
    """All releases in one document: equal forms of neighbouring releases become one entry."""
    dumps = sorted(dumps, key=lambda found: key(found["release"]))
    usual = {option["flags"][0] for option in dumps[-1]["options"]}
    releases = [found["release"] for found in dumps]
    forms: dict[str, list[int]] = {}
    variables: dict[str, list[int]] = {}
    for at, found in enumerate(dumps):
        for option in found["options"]:
            option["flags"].sort(key=lambda flag: flag not in usual)  # under the newest release's name where it has another
            forms.setdefault(json.dumps(option, sort_keys=True), []).append(at)
        for name in found["env"]:
            variables.setdefault(name, []).append(at)
    options = [{**json.loads(form), **span} for form, places in forms.items() for span in spans(places, releases)]
    options.sort(key=lambda option: option["flags"][0].lstrip("-"))
    env = {name: spans(places, releases) for name, places in sorted(variables.items())}
    return {"engine": engine, "how": how, "releases": releases, "options": options, "env": env}


def spans(places: list[int], releases: list[str]) -> list[dict[str, str]]:
    """Runs of neighbouring releases; an end at the oldest or newest known release stays open."""
    found = []
    for _, run in itertools.groupby(enumerate(places), lambda pair: pair[1] - pair[0]):
        positions = [place for _, place in run]
        span = {"since": releases[positions[0]]} if positions[0] else {}
        found.append(span | ({"until": releases[positions[-1]]} if positions[-1] < len(releases) - 1 else {}))
    return found


def lines(document: dict[str, Any]) -> str:
    """JSON with one entry a line, so that a difference can be read."""
    options = ",\n".join(json.dumps(option, separators=(",", ":")) for option in document["options"])
    env = ",\n".join(f"{json.dumps(n)}:{json.dumps(s, separators=(',', ':'))}" for n, s in document["env"].items())
    head = json.dumps({name: document[name] for name in ("engine", "how", "releases")})[:-1]
    return f'{head},\n"options":[\n{options}\n],\n"env":{{\n{env}\n}}}}\n'


if __name__ == "__main__":
    command, engine, *rest = sys.argv[1:]
    if command == "dump":
        json.dump(dump(engine, rest[0]), sys.stdout)
    else:
        read = [json.loads(pathlib.Path(file).read_text(encoding="utf-8")) for file in rest[1:]]
        sys.stdout.write(lines(merged(engine, rest[0], read)))
