"""`trtllm-serve` and `dynamo.trtllm`: a command and its settings file, as TensorRT-LLM puts them together.

Both become fields by their paths (`kv_cache_config.dtype`), which the release's list of fields is held against as its pydantic
classes would: names, types and choices. Text of a value is that of YAML: true, false, null, a number, a JSON list.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autotune.auditing.options import CHOICES_SHOWN, Command
from autotune.auditing.settings_file import settings_text
from autotune.auditing.shell import Invocation
from autotune.auditing.wrappers import DYNAMO_OPTIONS, WRAPPERS, Wrapped
from autotune.errors import ProblemError
from cost_models.reading import parse_yaml
from search_spaces.loader import resolve_version, version_notes
from search_spaces.options import Option, OptionList, load_options, releases_with
from search_spaces.schema import EngineSpec

FIELD_OF = {
    "--free_gpu_memory_fraction": "kv_cache_config.free_gpu_memory_fraction",
    "--kv_cache_dtype": "kv_cache_config.dtype",
}
"""Options of the command whose field is not their own name (commands/serve.py get_llm_args)."""
SETTINGS = "--config"
DYNAMO_FIELDS = {
    "--tensor-parallel-size": "tensor_parallel_size",
    "--pipeline-parallel-size": "pipeline_parallel_size",
    "--expert-parallel-size": "moe_expert_parallel_size",
    "--gpus-per-node": "gpus_per_node",
    "--max-batch-size": "max_batch_size",
    "--max-num-tokens": "max_num_tokens",
    "--max-seq-len": "max_seq_len",
    "--max-beam-width": "max_beam_width",
    "--free-gpu-memory-fraction": "kv_cache_config.free_gpu_memory_fraction",
    "--kv-block-size": "kv_cache_config.tokens_per_block",
    "--load-format": "load_format",
    "--guided-decoding-backend": "guided_decoding_backend",
}
"""Options of dynamo.trtllm -> fields (ai-dynamo/dynamo components/src/dynamo/trtllm/backend_args.py)."""
DYNAMO_SETTINGS = ("--extra-engine-args", "--override-engine-args")
ROLES = {"context": "prefill", "generation": "decode", "prefill": "prefill", "decode": "decode"}
ANY_CASE = ("load_format", "cp_config.cp_type")
"""Fields whose text the engine turns into capitals itself."""
FORCED = ("TRTLLM_FORCE_COMM_METHOD", "TRTLLM_FORCE_ALLTOALL_METHOD", "TRTLLM_CAN_USE_DEEP_EP")
DEEPEST = 8
MOST_UNKNOWN = 12
"""Unknown fields that are named one by one."""
WHOLE, NUMBER = re.compile(r"[+-]?\d+"), re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def split_settings(invocation: Invocation, engine: EngineSpec, version: str | None, folder: Path | None = None) -> Command:
    """The fields that a command and its settings file set.

    folder : where files are looked for that the text does not hold itself.

    Raises ProblemError for a version whose options are not known, options that no release has, a settings
    file that is not there, and values that are missing.
    """
    known = resolve_version(engine, version)
    release = engine.options_of(known)
    if release is None:
        read = ", ".join(v.version for v in engine.versions if engine.options_of(v.version))
        raise ProblemError(
            f"the options of {engine.title} {known} are not known here: commands of {read} are read (--engine-version); "
            "others are judged as a deployment file with engine trtllm (autotune schema deployment)"
        )
    split = _Words(engine, load_options("trtllm", release), invocation.wrapper)
    split.read(invocation.words)
    moved = {renamed.name: renamed.now for renamed in engine.renamed}
    fields = Fields(split.listed, f"{engine.title} {release}", {**split.fields}, moved)
    for text in split.settings:
        fields.take(_mapping(settings_text(text, invocation.files, folder), text))
    _balancer(fields, invocation.files, folder)
    model = next(iter(split.positional), None) or split.options.get("--model") or fields.values.get("model")
    if not model:
        raise ProblemError(f"the {engine.title} command names no model")
    environment, forced = _forced(invocation.environment, engine, known)
    options: dict[str, str | None] = {**split.options, **fields.values, **forced}
    role = split.role or ROLES.get((options.get("--server_role") or "").lower())
    remarks = [*version_notes(engine, version), *_said_aside(options)]
    conflicts = (*split.conflicts, *fields.conflicts)
    return Command(engine, known, model, options, environment, conflicts, tuple(remarks), role)


def _mapping(text: str, where: str) -> dict[str, Any]:
    name = "the settings" if where.lstrip().startswith("{") else where
    data = parse_yaml(text, name)
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ProblemError(f"{name}: a settings file holds fields of the engine, this one {type(data).__name__}")
    return data


@dataclass(slots=True)
class _Words:
    """A command line on its way to fields and options of the command alone."""

    engine: EngineSpec
    listed: OptionList
    wrapper: str | None
    fields: dict[str, str] = field(default_factory=dict)
    options: dict[str, str | None] = field(default_factory=dict)
    settings: list[str] = field(default_factory=list)
    positional: list[str] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)
    role: str | None = None

    def read(self, words: Sequence[str]) -> None:
        at = 0
        while at < len(words):
            if not words[at].startswith("-"):
                self.positional.append(words[at])
                at += 1
                continue
            name, joined, value = words[at].partition("=")
            following = words[at + 1 : at + 2]
            take = self._wrapped if self.wrapper else self._own
            at += 1 + take(name, value if joined else next(iter(following), None), bool(joined))

    def _own(self, name: str, value: str | None, joined: bool) -> int:
        """One option of trtllm-serve, whose parser takes no beginnings of names; how many further words it took."""
        option = self.listed.find(name) if name.startswith("-") else None
        if option is None:
            self.conflicts.append(self._missing(name))
            return 0
        path = FIELD_OF.get(option.flags[0], option.flags[0].removeprefix("--"))
        if not option.takes_value:
            off = name.startswith("--no-")
            self._put(path, "false" if off else "true", option)
            return 0
        if value is None:
            raise ProblemError(f"{name} needs a value")
        if option.flags[0] == SETTINGS:
            self.settings.append(value)
        else:
            self.conflicts += misfits(option, value, f"{self.engine.title} {self.listed.release}", name)
            self._put(path, value, option)
        return 0 if joined else 1

    def _put(self, path: str, value: str, option: Option) -> None:
        """Under the field's path, or the option's own name where it is no field."""
        if self.listed.find(path) is not None:
            self.fields[path] = value
        else:
            self.options[option.flags[0]] = value if option.takes_value else None

    def _missing(self, name: str) -> str:
        """Why the command would not start; raises ProblemError for what no release has."""
        if had := releases_with("trtllm", name):
            return f"{self.engine.title} {self.listed.release} has no {name} (release {', '.join(had)} has it)"
        every = [flag for option in self.listed.options for flag in option.flags if flag.startswith("-")]
        near = difflib.get_close_matches(name.replace("-", "_").replace("__", "--", 1), every, n=1)
        raise ProblemError(f"{self.engine.title} has no option {name}{f'; did you mean {near[0]}?' if near else ''}")

    def _wrapped(self, name: str, value: str | None, joined: bool) -> int:
        """One option of dynamo.trtllm."""
        around = WRAPPERS[str(self.wrapper)]
        used = 0 if joined else 1
        if name in DYNAMO_FIELDS or name in DYNAMO_SETTINGS or name in ("--model", "--model-path", "--served-model-name"):
            if value is None:
                raise ProblemError(f"{name} needs a value")
            if name in DYNAMO_FIELDS:
                self.fields[DYNAMO_FIELDS[name]] = value
            elif name in DYNAMO_SETTINGS:
                self.settings.append(value)
            else:
                self.options["--model" if name.startswith("--model") else "--served_model_name"] = value
            return used
        if name in ("--enable-attention-dp", "--no-enable-attention-dp"):
            self.fields["enable_attention_dp"] = str(not name.startswith("--no-")).lower()
            return 0
        known = around.get(name, Wrapped() if name.startswith(DYNAMO_OPTIONS) else None)
        if known is None:
            raise ProblemError(f"dynamo.trtllm has no option {name} that is known here")
        if not known.takes_value:
            return 0
        self.role = known.roles.get(value or "", self.role) if known.roles else self.role
        return used


@dataclass(slots=True)
class Fields:
    """Fields by path, held against a release's list."""

    listed: OptionList
    title: str
    values: dict[str, str] = field(default_factory=dict)
    moved: Mapping[str, str] = field(default_factory=dict)
    """Fields of older releases and what took their place."""
    conflicts: list[str] = field(default_factory=list)
    _known: dict[str, Option] = field(init=False)
    _opened: set[str] = field(init=False)
    """Fields that hold others."""

    def __post_init__(self) -> None:
        self._known = {o.flags[0]: o for o in self.listed.options if not o.flags[0].startswith("-")}
        self._opened = {path.rpartition(".")[0] for path in self._known}

    def take(self, document: Mapping[str, Any]) -> None:
        """The fields of a settings file take the place of what was said before."""
        unknown = 0
        for path, value in _leaves(document, self._closed):
            option = self._known.get(path)
            if option is None:
                unknown += 1
                if unknown <= MOST_UNKNOWN:
                    self.conflicts.append(self._missing(path))
                continue
            self.conflicts += misfits(option, value, self.title, path)
            if value is None and "document" not in option.type:
                self.values.pop(path, None)  # the engine's own default
            else:
                self.values[path] = as_text(value)
        if unknown > MOST_UNKNOWN:
            self.conflicts.append(f"{self.title}: {unknown - MOST_UNKNOWN:,} more fields that it does not have")

    def _closed(self, path: str) -> bool:
        """Whether a mapping is one value: its keys are the user's own."""
        return path in self._known and path not in self._opened

    def _missing(self, path: str) -> str:
        near = difflib.get_close_matches(path[:120], self._known, n=1)
        had = releases_with("trtllm", path)
        instead = f" (now {self.moved[path]})" if path in self.moved else f" (do you mean {near[0]}?)" if near else ""
        elsewhere = f" (release {', '.join(had)} has it)" if had else instead
        return f"{self.title} has no field {path[:120]}{elsewhere}: it refuses the settings file"


def _leaves(
    document: Mapping[str, Any], closed: Callable[[str], bool], prefix: str = "", depth: int = 0
) -> Iterator[tuple[str, Any]]:
    """Values by path; an empty mapping, and one whose keys are the user's own, is a value."""
    for key, value in document.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict) and value and depth < DEEPEST and not closed(path):
            yield from _leaves(value, closed, f"{path}.", depth + 1)
        else:
            yield path, value


def misfits(option: Option, value: Any, title: str, name: str) -> list[str]:
    """Why a value is none that a field or option takes, as pydantic would say; empty where it is one."""
    if value is None or (isinstance(value, str) and value.startswith("$")):
        return []
    kinds = option.type.split("|")
    if not any(_is(value, kind) for kind in kinds):
        wanted = {
            "bool": "true or false",
            "int": "a whole number",
            "float": "a number",
            "list": "a list",
            "document": "a mapping",
        }
        asked = " or ".join(wanted.get(kind, "text") for kind in kinds)
        return [f"{title}: {name} needs {asked}, {as_text(value)[:60]!r} was given"]
    choices = [str(choice) for choice in option.choices]
    said = str(value)
    fitting = said in choices or (name in ANY_CASE and said.upper() in [choice.upper() for choice in choices])
    if choices and isinstance(value, str) and not fitting:
        near = difflib.get_close_matches(said, choices, n=1)
        hint = f"; did you mean {near[0]}?" if near else f" ({', '.join(choices[:CHOICES_SHOWN])})"
        return [f"{title} takes no {name} {said[:60]}{hint}"]
    return []


def _is(value: Any, kind: str) -> bool:
    """Whether a value of a YAML file, or a word, is of a kind, or is taken for it."""
    text = value if isinstance(value, str) else None
    match kind:
        case "bool":
            return (
                isinstance(value, bool) or value in (0, 1) or (text or "").lower() in ("true", "false", "yes", "no", "on", "off")
            )
        case "int":
            return (isinstance(value, int) and not isinstance(value, bool)) or bool(text and WHOLE.fullmatch(text))
        case "float":
            return (isinstance(value, int | float) and not isinstance(value, bool)) or bool(text and NUMBER.fullmatch(text))
        case "list":
            return isinstance(value, list)
        case "document":
            return isinstance(value, dict)
        case "str":
            return text is not None
    return True


def as_text(value: Any) -> str:
    """A value as the rest of the reader sees it."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _balancer(fields: Fields, files: Mapping[str, str], folder: Path | None) -> None:
    """The map of experts, where it lies in a file of its own; one that is not here leaves its path to be said."""
    path = "moe_config.load_balancer"
    said = fields.values.get(path)
    if said is None or said in ("null", "{}"):
        return
    try:
        document = _mapping(settings_text(said, files, folder), said)
    except ProblemError:
        return
    del fields.values[path]
    fields.take({"moe_config": {"load_balancer": document}})


def _forced(environment: Mapping[str, str], engine: EngineSpec, version: str) -> tuple[dict[str, str], dict[str, str | None]]:
    """(variables with the all-to-all as the engine's document spells it, those that force another by name)."""
    knob = engine.knob("all2all_backend")
    assert knob is not None
    spelling = knob.spelling(version)
    choices = [choice.value for choice in knob.choices_in(version)]
    found = dict(environment)
    forced: dict[str, str | None] = {}
    for name in FORCED:
        said = environment.get(name)
        if said is None:
            continue
        same = next((value for value in choices if value.lower() == said.lower()), None)
        if spelling is not None and spelling.name == name and same:
            found[name] = same
            continue
        del found[name]
        forced[name] = said
    return found, forced


def _said_aside(options: Mapping[str, str | None]) -> Iterator[str]:
    """What the engine decides by itself, and what a command leaves open."""
    if options.get("moe_config.backend") in (None, "AUTO"):
        yield "moe_config.backend is left to TensorRT-LLM, which takes one by model, release and hardware; that one is priced"
    if options.get("cuda_graph_config") != "null" and options.get("cuda_graph_config.enable_padding") in (None, "false"):
        yield "without cuda_graph_config.enable_padding only steps of exactly a captured size run as graphs; all are priced so"
