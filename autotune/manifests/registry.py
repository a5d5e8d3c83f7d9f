"""Kinds of files that can be read: one entry each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from autotune.errors import ProblemError, StartsNothing
from autotune.manifests import compose, dynamo, kserve, kubernetes, modelservice, srt_slurm, trtllm_disagg, vllm_recipes
from autotune.manifests.kustomize import is_kustomization, rendered
from autotune.manifests.scripts import NOTHING, launch_scripts, read_launch, read_script
from autotune.manifests.service import Manifest
from autotune.manifests.source import Source, annotated, documents_in, documents_of
from cost_models.reading import is_folder, read_bytes, reading


@dataclass(frozen=True, slots=True)
class Reader:
    """One kind of file."""

    name: str
    what: str
    """As messages list it."""
    recognises: Callable[[Source], bool]
    read: Callable[[Source, str | None], Manifest]
    """Of a source, and of the hardware that was asked for."""


def _whatever_hardware(read: Callable[[Source], Manifest]) -> Callable[[Source, str | None], Manifest]:
    return lambda source, _: read(source)


def _recipe(source: Source, hardware: str | None) -> Manifest:
    if hardware is None:
        raise ProblemError(f"{source.path}: a vLLM recipe is for many machines: give --hw (autotune hw list)")
    return vllm_recipes.read_on(source, hardware)


READERS: tuple[Reader, ...] = (
    Reader("dynamo", "DynamoGraphDeployment (nvidia.com/v1alpha1, v1beta1)", dynamo.recognises, _whatever_hardware(dynamo.read)),
    Reader(
        "kserve", "LLMInferenceService (serving.kserve.io/v1alpha1, v1alpha2)", kserve.recognises, _whatever_hardware(kserve.read)
    ),
    Reader(
        "kubernetes",
        "LeaderWorkerSet, DisaggregatedSet, Deployment, StatefulSet, Job, Pod",
        kubernetes.recognises,
        _whatever_hardware(kubernetes.read),
    ),
    Reader(
        "modelservice", "values of llm-d's modelservice chart", modelservice.recognises, _whatever_hardware(modelservice.read)
    ),
    Reader("srt-slurm", "srt-slurm recipe (schema 1 and 2)", srt_slurm.recognises, _whatever_hardware(srt_slurm.read)),
    Reader(
        "trtllm-disaggregated",
        "file of trtllm-serve disaggregated",
        trtllm_disagg.recognises,
        _whatever_hardware(trtllm_disagg.read),
    ),
    Reader("vllm-recipe", "entry of vLLM's recipes (models/*.yaml)", vllm_recipes.recognises, _recipe),
    Reader("compose", "docker compose", compose.recognises, _whatever_hardware(compose.read)),
)


DOCUMENT_ENDINGS = (".yaml", ".yml", ".json")


def read_file(path: Path, hardware: str | None = None) -> Manifest | None:
    """What a file or kustomize folder starts; none for a file that is of no kind here and does not say that it should be.

    Raises AutotuneError for broken files, kinds that are not known, and files that start no engine.
    """
    if is_kustomization(path):
        source = Source(path, tuple(rendered(path)))
    elif is_folder(path):
        written = not (path / "plan.yaml").exists() and launch_scripts(path)
        return read_launch(path) if written else None
    else:
        source = Source(path, documents_of(path))
    return _manifest_of(source, hardware)


def read_any(path: Path, hardware: str | None = None, variables: Mapping[str, str] = NOTHING) -> Manifest | None:
    """What a script, a manifest or a folder starts; none for a deployment or a run folder. Raises AutotuneError as read_file.

    variables : set around its commands.
    """
    path = path.parent if path.name == "service.sbatch" and launch_scripts(path.parent) else path
    if is_folder(path) or path.suffix in DOCUMENT_ENDINGS:
        found = read_file(path, hardware)
    else:
        with reading(path, "cannot be read", ProblemError):
            found = read_script(read_bytes(path, pipe=True).decode("utf-8", errors="replace"), path.parent, variables)
    return found.with_variables(variables) if found else None


def read_manifest_text(text: str, hardware: str | None = None) -> Manifest:
    """What the text of a file starts. Raises AutotuneError as read_file, and for text that is of no kind here."""
    source = Source(Path("the manifest"), documents_in(text, "the manifest"))
    found = _manifest_of(source, hardware)
    if found is None:
        known = "; ".join(reader.what for reader in READERS)
        raise ProblemError(f"the manifest is of no kind that starts an engine here; known: {known}")
    return found


def _manifest_of(source: Source, hardware: str | None) -> Manifest | None:
    """What documents start; none for those of no kind here."""
    reader = next((reader for reader in READERS if reader.recognises(source)), None)
    if reader is None:
        _check_unknown(source)
        return None
    found = reader.read(source, hardware)
    if not found.services:
        raise StartsNothing(f"{source.path}: {found.title}: no container in it starts vLLM, SGLang or TensorRT-LLM")
    return _as_planned(found, source)


def _as_planned(manifest: Manifest, source: Source) -> Manifest:
    """With the engine's version and the hardware of the plan that a file was written from, as its annotations say them."""
    said = {key: tuple(dict.fromkeys(annotated(source.documents, f"autotune/{key}"))) for key in ("engine-version", "hardware")}
    version = said["engine-version"][0] if len(said["engine-version"]) == 1 else None
    services = tuple(dataclasses.replace(s, version=version or s.version) for s in manifest.services)
    return dataclasses.replace(manifest, services=services, hardware=said["hardware"] or manifest.hardware)


def _check_unknown(source: Source) -> None:
    """Raise ProblemError for documents that are Kubernetes resources of other kinds."""
    kinds = dict.fromkeys(f"{d['kind']} ({d['apiVersion']})" for d in source.documents if "apiVersion" in d and "kind" in d)
    if kinds:
        known = "; ".join(reader.what for reader in READERS)
        raise StartsNothing(f"{source.path}: nothing here starts an engine: {', '.join(kinds)}; known: {known}")
    if any("apiVersion" in document for document in source.documents):
        raise ProblemError(f"{source.path}: has an apiVersion but no kind")
