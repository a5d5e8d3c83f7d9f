"""What an engine must know of a model before it loads one."""

from __future__ import annotations

from search_spaces.architectures import architecture_releases
from search_spaces.rules.rule import Rule
from search_spaces.rules.subject import Subject


def instead(subject: Subject) -> str | None:
    """Which releases have the model's architecture, where this one has not; none where it has, or where nobody looked."""
    table = architecture_releases(subject.engine.name)
    return table.without(subject.model.architecture, subject.release) if table and subject.model.architecture else None


RULES = (
    Rule(
        name="architecture_of_the_release",
        says="The release has the model's architecture: without it, it stops or runs the model through Transformers.",
        source="vllm/model_executor/models/registry.py of 47 releases, EntryClass of sglang/srt/models/*.py of 23",
        engines=("vllm", "sglang"),
        effect="unpriced",
        broken=lambda s: s.all(instead(s) is not None),
        because=lambda s: (
            f"{s.engine.title} {s.release} has no {s.model.architecture} ({instead(s)}): it stops, or runs {s.model.name} "
            "through Transformers, by kernels that nothing here prices; take a release that has it"
        ),
    ),
)
