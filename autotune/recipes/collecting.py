"""A collection of public recipes as deployments, one bad file of many by name."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from autotune.auditing.commands import ReadCommand
from autotune.documents.deployment import Deployment, Load
from autotune.documents.results import dump_yaml
from autotune.errors import ProblemError, StartsNothing
from autotune.files import whole_folder
from autotune.manifests.judging import GivenToo, parts_of, read_manifest
from autotune.manifests.kustomize import is_kustomization
from autotune.manifests.registry import DOCUMENT_ENDINGS, read_any
from autotune.manifests.service import Manifest
from cost_models.errors import AutotuneError
from cost_models.reading import is_folder
from cost_models.specs.base import Spec

SCRIPT_ENDINGS = (".sh", ".sbatch", ".slurm")
MOST_FILES = 5_000
MOST_LOADS = 64
"""Of one file's benchmark."""
FAULTS = (TypeError, ValueError, KeyError, IndexError, AttributeError)
MARK = "# Imported by `autotune recipe import` from "


class ImportedDeployment(Spec):
    """One deployment of a recipe."""

    name: str
    """Of the file that is written, without ending."""
    source: str
    """The file, under the folder that was given."""
    service: str | None
    """Which of its engines, where they are no pool or pair together."""
    kind: str
    """Of file."""
    deployment: Deployment
    gpus: int
    remarks: tuple[str, ...]
    conflicts: tuple[str, ...]
    """Why the engine would not start it."""
    unmodelled: tuple[str, ...]
    """Options of the recipe that no deployment document says: `autotune check` of the recipe itself takes them into account."""


class UnreadRecipe(Spec):
    """A file, or one of its engines, that makes no deployment."""

    source: str
    message: str


class ImportedRecipes(Spec):
    """Everything that was found under what was given."""

    deployments: tuple[ImportedDeployment, ...]
    unread: tuple[UnreadRecipe, ...]
    """That should start an engine and cannot be read."""
    passed_over: tuple[UnreadRecipe, ...]
    """Files of folders that start no engine known here."""


def import_recipes(paths: Sequence[Path], asked: GivenToo) -> ImportedRecipes:
    """The deployments of recipe files, and of all such files in folders.

    asked : what the files do not say. A file that cannot be read is named, and the others go on. Raises ProblemError for more
    files than MOST_FILES, and for a path that is not there.
    """
    found: list[ImportedDeployment] = []
    unread: list[UnreadRecipe] = []
    passed: list[UnreadRecipe] = []
    for path, source, walked in _files(paths):
        try:
            for made in _imported(path, source, asked):
                (found if isinstance(made, ImportedDeployment) else unread).append(made)  # type: ignore[arg-type]
        except FAULTS as error:  # of one stranger's file among many: the others are read all the same
            what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            message = f"has a shape that its reader does not expect ({what}); please report it"
            unread.append(UnreadRecipe(source=source, message=message))
        except AutotuneError as error:
            idle = walked and isinstance(error, StartsNothing)
            (passed if idle else unread).append(UnreadRecipe(source=source, message=str(error).removeprefix(f"{source}: ")))
    return ImportedRecipes(deployments=tuple(_named_apart(found)), unread=tuple(unread), passed_over=tuple(passed))


def write_imported(out: Path, imported: ImportedRecipes) -> None:
    """One YAML file for each deployment; those of an earlier import go. Raises OutputError."""
    with whole_folder(out, _written_before) as scratch:
        for one in imported.deployments:
            (scratch / f"{one.name}.yaml").write_text(document_text(one), encoding="utf-8")


def document_text(one: ImportedDeployment) -> str:
    """A deployment document under comments that say where it is from and what it does not hold."""
    said = [
        *(f"would not start: {line}" for line in one.conflicts),
        *(f"not in this document, not modelled: {line}" for line in one.unmodelled),
        *one.remarks,
    ]
    where = f"{one.source} ({one.service})" if one.service else one.source
    head = [f"{MARK}{_plain(where)}, {_plain(one.kind)}.", *(f"# {_plain(line)}" for line in said)]
    data = {"format": one.deployment.format, **one.deployment.model_dump(mode="json", exclude_defaults=True)}
    return "\n".join(head) + "\n" + dump_yaml(data)


def _plain(text: str) -> str:
    """One printable line."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _written_before(path: Path) -> bool:
    if path.is_symlink() or not path.is_file() or path.suffix != ".yaml":
        return False
    with path.open("rb") as file:
        return file.read(len(MARK)).decode("utf-8", errors="replace") == MARK


def _files(paths: Sequence[Path]) -> Iterator[tuple[Path, str, bool]]:
    """(file or kustomize folder, its name under what was given, whether it was found in a folder)."""
    count = 0
    for given in paths:
        if not given.exists():
            raise ProblemError(f"{given}: no such file or folder")
        if not is_folder(given):
            yield given, given.name, False
            continue
        for path in _walked(given):
            count += 1
            if count > MOST_FILES:
                raise ProblemError(f"{given}: more than {MOST_FILES:,} files that may be recipes: give its folders one by one")
            yield path, str(path.relative_to(given)) if path != given else given.name, True


def _walked(folder: Path) -> Iterator[Path]:
    """Kustomize folders as a whole, and the YAML files and scripts of all others, in order; links to folders are not followed."""
    for at, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        here = Path(at)
        if is_kustomization(here):
            yield here
            continue
        yield from (here / name for name in sorted(names) if Path(name).suffix in (*DOCUMENT_ENDINGS, *SCRIPT_ENDINGS))


def _imported(path: Path, source: str, asked: GivenToo) -> Iterator[ImportedDeployment | UnreadRecipe]:
    manifest = read_any(path, asked.hardware)
    if manifest is None:
        raise StartsNothing(f"{source}: no recipe of a kind known here (docs/auditing.md lists them)")
    if len(manifest.hardware) == 1:  # of many files each goes by its own
        asked = dataclasses.replace(asked, hardware=manifest.hardware[0])
    parts = (asked.service,) if asked.service else parts_of(manifest)
    for part in parts:
        try:
            yield from _of_part(manifest, source, dataclasses.replace(asked, service=part))
        except AutotuneError as error:
            if part is None or asked.service:
                raise
            yield UnreadRecipe(source=f"{source} ({part})", message=str(error).removeprefix(f"{source}: "))


def _of_part(manifest: Manifest, source: str, asked: GivenToo) -> Iterator[ImportedDeployment]:
    """A deployment for each load of the file's benchmark, where that is of a service and no load was asked for."""
    counts = manifest.concurrencies if asked.load is None else ()
    if len(counts) > MOST_LOADS:
        raise ProblemError(f"{source}: its benchmark has {len(counts)} loads, at most {MOST_LOADS} are read: --clients N")
    held: list[Load | None] = [Load(concurrency=count) for count in dict.fromkeys(counts)]
    loads = held or [asked.load]
    for load in loads:
        read = read_manifest(manifest, dataclasses.replace(asked, load=load), source)
        served = read.deployment.phase == "serve"
        ending = f"-c{load.concurrency}" if served and load and len(loads) > 1 else ""
        yield _deployed(read, manifest, source, asked.service, ending)
        if not served:  # one side of a pair has no load of its own
            return


def _deployed(read: ReadCommand, manifest: Manifest, source: str, service: str | None, ending: str) -> ImportedDeployment:
    stem = re.sub(r"\.(ya?ml|json|sh|sbatch|slurm)$", "", source)
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", f"{stem}--{service}" if service else stem).strip("-.") or "recipe"
    return ImportedDeployment(
        name=f"{plain[:120]}{ending}",
        source=source,
        service=service,
        kind=manifest.title,
        deployment=read.deployment,
        gpus=sum(pool.layout.gpus * pool.instances for pool in read.deployment.pools.values()),
        remarks=read.remarks,
        conflicts=read.conflicts,
        unmodelled=tuple(option.line() for option in read.unmodelled),
    )


def _named_apart(found: Iterable[ImportedDeployment]) -> Iterator[ImportedDeployment]:
    """Names of files that differ on every file system."""
    taken: set[str] = set()
    for one in found:
        name, count = one.name, 1
        while name.lower() in taken:
            count += 1
            name = f"{one.name}-{count}"
        taken.add(name.lower())
        yield one.model_copy(update={"name": name})
