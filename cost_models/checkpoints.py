"""Published checkpoints by their exact names: which model each is, and what it is stored in.

A name that is not listed is not guessed at: names that begin like a known one are other models more often than not
(DeepSeek-R1-Distill-Llama-70B is a Llama, DeepSeek-V3.2 is no V3).
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any

import yaml

from cost_models.specs.base import Spec

CACHED = re.compile(r"models--([^/]+?)--([^/]+)")
"""A repository's folder in the Hugging Face cache."""
NEAR = 0.6
SHOWN = 4


class Checkpoint(Spec):
    """One published checkpoint."""

    name: str
    """organisation/name."""
    model: str
    """Preset, or the name of a model of which none is shipped."""
    precision: str
    """Recipe, or the name of a format that has none."""
    stored: tuple[tuple[str, str], ...] = ()
    """Fields of the recipe that it has otherwise."""
    folders: tuple[str, ...] = ()
    """Other names that its folder has in public recipes."""
    context_tokens: int | None = None
    """Longest context of its own config, where it is another than the preset's."""
    architecture: str | None = None
    """Of a model of which no preset is shipped."""
    source: str

    @property
    def folder(self) -> str:
        """What its folder is usually called."""
        return self.name.rsplit("/", 1)[-1]


@functools.cache
def known_checkpoints() -> tuple[Checkpoint, ...]:
    """All of them, in the order of the file."""
    text = resources.files("cost_models").joinpath("data", "checkpoints.yaml").read_text(encoding="utf-8")
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found = []
    for group in yaml.load(text, Loader=loader):  # noqa: S506  (a safe loader)
        shared = {key: group[key] for key in ("model", "architecture", "source") if key in group}
        for precision, entries in group["checkpoints"].items():
            for entry in entries:
                own: dict[str, Any] = {"name": entry} if isinstance(entry, str) else dict(entry)
                own["stored"] = tuple(own.get("stored", {}).items())
                found.append(Checkpoint.model_validate({**shared, "precision": precision, **own}))
    return tuple(found)


@functools.cache
def _by_name() -> dict[str, Checkpoint]:
    return {checkpoint.name.casefold(): checkpoint for checkpoint in known_checkpoints()}


def find_checkpoint(name: str) -> Checkpoint | None:
    """The checkpoint of an exact name (case aside), also as the folder of the Hugging Face cache; none for an unknown one."""
    cached = CACHED.search(name)
    return _by_name().get((f"{cached[1]}/{cached[2]}" if cached else name.rstrip("/")).casefold())


def in_folder_called(name: str) -> tuple[Checkpoint, ...]:
    """Checkpoints whose own name without the organisation, or another that recipes give it, is that of a folder."""
    last = name.rstrip("/").rsplit("/", 1)[-1].casefold()
    return tuple(c for c in known_checkpoints() if last in {called.casefold() for called in (c.folder, *c.folders)})


def checkpoints_of(model: str) -> tuple[Checkpoint, ...]:
    """Those of one model."""
    return tuple(checkpoint for checkpoint in known_checkpoints() if checkpoint.model == model)


def unknown_model(name: str, presets: Sequence[str]) -> str:
    """What to say of a name that is not known: names like it, as the other models that they are, and the way out."""
    last = name.rstrip("/").rsplit("/", 1)[-1]
    same = [checkpoint.name for checkpoint in in_folder_called(name)]
    way_out = "give its folder or config.json with --model"
    if same:
        verb = "has" if len(same) == 1 else "have"
        return f"unknown checkpoint '{name}'. {', '.join(same)} {verb} the same name: if it is that, name it; else {way_out}"
    near = _near(last, [*presets, *(checkpoint.folder for checkpoint in known_checkpoints())])
    others = f" Names like it ({', '.join(near)}) are other models and are not taken for it." if near else ""
    return f"unknown model '{name}'.{others} Name a preset (autotune model list) or a published checkpoint, or {way_out}"


def _near(name: str, known: Iterable[str]) -> list[str]:
    spelled = {candidate.casefold(): candidate for candidate in reversed(list(known))}
    return [spelled[match] for match in difflib.get_close_matches(name.casefold(), list(spelled), n=SHOWN, cutoff=NEAR)]
