"""Pages made from the catalogue and the validation cases while mkdocs builds: accuracy, and one page for every model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from mkdocs.structure.files import File

from autotune.validating.cases import CaseFile, CaseResult, published, try_cases
from autotune.validating.report import markdown
from autotune.validating.statistics import summarise
from cost_models.catalog import load_model, model_names
from cost_models.checkpoints import find_checkpoint
from cost_models.specs.model import ModelSpec

Tried = Sequence[tuple[CaseFile, list[CaseResult]]]
HEAD = (
    "| model | hardware | phase | cases | mean absolute error | bias | in the 80 % interval |\n|---|---|---|---:|---:|---:|---:|"
)
MADE = (
    "Made by `autotune validate`'s own functions while this site was built; errors are of tokens/s/GPU, predicted over published."
)


def on_files(files: Any, config: Any) -> Any:
    """Add the pages; every case is priced once."""
    tried = [(file, try_cases(file)[0]) for file in published()]
    results = [result for _, found in tried for result in found]
    models = [load_model(name) for name in model_names()]
    pages = {"accuracy.md": accuracy(tried), "catalogue/index.md": index(models, results)}
    pages |= {f"catalogue/{model.name}.md": model_page(model, models, results) for model in models}
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    return files


def accuracy(tried: Tried) -> str:
    """By model and hardware, then case by case."""
    results = [result for _, found in tried for result in found]
    return "\n".join(["# Accuracy", "", MADE, "", *by_place(results), "", markdown(tried)])


def by_place(results: Sequence[CaseResult]) -> list[str]:
    """A table of errors by model, hardware and phase."""
    groups = defaultdict(list)
    for result in results:
        groups[model_of(result), result.case.deployment.hardware, result.case.deployment.phase].append(result)
    rows = []
    for (model, hardware, phase), found in sorted(groups.items()):
        errors = summarise(found)
        inside = f"{errors.covered} of {errors.cases}"
        rows.append(
            f"| [{model}]({link(model)}) | {hardware} | {phase} | {errors.cases} | {errors.mean_absolute_error:.1%} "
            f"| {errors.bias:+.1%} | {inside} |"
        )
    return [HEAD, *rows]


def link(model: str) -> str:
    """A model's page, from the pages that list it."""
    return f"catalogue/{model}.md"


def model_of(result: CaseResult) -> str:
    """The preset that a case's model is, or is a checkpoint of."""
    name = result.case.deployment.model
    checkpoint = None if name in model_names() else find_checkpoint(name)
    return checkpoint.model if checkpoint else name


def index(models: Sequence[ModelSpec], results: Sequence[CaseResult]) -> str:
    """Every model, and where its predictions were held against measurements."""
    rows = []
    for model in models:
        found = of_architecture(model, models, results)
        places = sorted({result.case.deployment.hardware for result in found})
        rows.append(
            f"| [{model.name}]({model.name}.md) | {model.title} | {', '.join(model.checkpoints) or '-'} "
            f"| {', '.join(places) or 'none published here'} |"
        )
    head = ["# Models", "", "`autotune model list`; any other published checkpoint by its name or its folder.", ""]
    return "\n".join([*head, "| name | model | precisions | compared with measurements on |", "|---|---|---|---|", *rows, ""])


def model_page(model: ModelSpec, models: Sequence[ModelSpec], results: Sequence[CaseResult]) -> str:
    """What a model is made of, its checkpoints, and how far its predictions lie from what was measured."""
    facts = {
        "parameters": f"{model.parameters() / 1e9:,.2f} billion, {model.active_parameters() / 1e9:,.2f} active",
        "layers": ", ".join(f"{group.count} x {group.kind}" for group in model.groups),
        "hidden size": f"{model.hidden:,}",
        "experts": f"{model.moe.experts}, {model.moe.top_k} for each token" if model.moe else "none",
        "context": f"{model.max_context_tokens:,} tokens",
        "draft layers": f"{model.mtp_layers}" if model.mtp_layers else "none",
        "source": f"<{model.source}>" if model.source.startswith("http") else model.source,
    }
    lines = [f"# {model.title}", "", f"`--model {model.name}`", "", "| fact | value |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in facts.items()]
    lines += ["", "## Precisions", "", "| precision | checkpoint |", "|---|---|"] if model.checkpoints else []
    lines += [f"| {precision} | {checkpoint} |" for precision, checkpoint in model.checkpoints.items()]
    lines += ["", "## Not modelled", "", *(f"- {flag}" for flag in model.flags)] if model.flags else []
    return "\n".join([*lines, "", "## Accuracy", "", *model_accuracy(model, models, results), ""])


def model_accuracy(model: ModelSpec, models: Sequence[ModelSpec], results: Sequence[CaseResult]) -> list[str]:
    """Its cases by hardware, or that there are none."""
    found = of_architecture(model, models, results)
    if not found:
        return [
            "No published measurement of this architecture is among the validation cases: how far its predictions lie from a "
            "deployment is not known here. Its kernels are priced from the same calibrations as those of other models; every "
            "operator of a prediction says whether it was measured, and `autotune verify` holds your own measurement against it."
        ]
    others = sorted({model_of(result) for result in found} - {model.name})
    shared = [f"Cases of {', '.join(others)} count here as well: the architecture is the same.", ""] if others else []
    table = [row.replace("](catalogue/", "](") for row in by_place(found)]
    cases = [_case(result) for result in found]
    head = ["| measured deployment | hardware | error | in the 80 % interval |", "|---|---|---:|---|"]
    star = ["", "* not named beforehand: its set-up is not fully published, or the hardware has no measured kernels yet."]
    return [*shared, MADE, "", *table, "", *head, *cases, *(star if any(not result.case.named for result in found) else [])]


def _case(result: CaseResult) -> str:
    case, star = result.case, "" if result.case.named else " *"
    inside = "yes" if result.covered else "no"
    return f"| [{case.title}]({case.source}){star} | {case.deployment.hardware} | {result.throughput_error:+.1%} | {inside} |"


def of_architecture(model: ModelSpec, models: Sequence[ModelSpec], results: Sequence[CaseResult]) -> list[CaseResult]:
    """Cases of models with the same layers: presets of one architecture differ in their weights alone."""
    alike = {other.name for other in models if shape(other) == shape(model)}
    return [result for result in results if model_of(result) in alike]


def shape(model: ModelSpec) -> tuple[Any, ...]:
    """What predictions depend on."""
    return model.hidden, model.vocab, model.groups, model.mtp_layers
