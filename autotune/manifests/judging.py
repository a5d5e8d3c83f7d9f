"""What a file starts as one deployment: a pool, or a prefill and a decode pool judged as the pair that they are."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from autotune.auditing.commands import ReadCommand, read_command
from autotune.auditing.naming import served_model
from autotune.auditing.options import engine_for, split_options
from autotune.auditing.shell import find_command
from autotune.auditing.trtllm import ROLES
from autotune.documents.deployment import Deployment, Load, Pool, PoolRole
from autotune.errors import ProblemError
from autotune.manifests.service import EngineService, Manifest
from cost_models.catalog import load_hardware, load_model, validated
from cost_models.checkpoints import find_checkpoint
from cost_models.errors import AutotuneError

USUAL_TOKENS = 2000
"""Of prompt and answer where neither the file nor the user says any."""
PLACED = re.compile(
    r"--(?:port|nccl-port|dist-init-addr|base-gpu-id|master-port|data-parallel-rpc-port|disaggregation-bootstrap-port)[=\s]+\S+"
)
"""Options in which instances on one machine differ."""
FORMATS = {
    "fp4": ("nvfp4", "mxfp4", "mxfp4-mxfp8"),
    "nvfp4": ("nvfp4",),
    "fp8": ("fp8-block", "fp8-tensor"),
    "bf16": ("bf16",),
    "mxfp4": ("mxfp4", "mxfp4-mxfp8"),
}
"""What recipes call the precision of a checkpoint -> precision recipes."""


@dataclass(frozen=True, slots=True)
class GivenToo:
    """What is said beside the file."""

    hardware: str | None = None
    version: str | None = None
    isl_tokens: int | None = None
    osl_tokens: int | None = None
    size: int | None = None
    mtp_acceptance: tuple[float, ...] = ()
    load: Load | None = None
    model: str | None = None
    precision: str | None = None
    service: str | None = None
    """By name, where a file starts several that are no pair."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The model that a service serves, where its command alone does not say."""

    model: str | None
    precision: str | None
    remark: str = ""


def read_manifest(manifest: Manifest, asked: GivenToo, where: object) -> ReadCommand:
    """The deployment that a file starts, with what its commands say beside.

    Raises ProblemError where the hardware or an engine's version is not said, and where several services are no pair.
    """
    hardware = _hardware(manifest, asked, where)
    services = _chosen(manifest, asked, where)
    load = asked.load or _load(manifest)
    read = [
        _read(service, manifest, services, dataclasses.replace(asked, hardware=hardware, load=load), where)
        for service in services
    ]
    remarks = [*manifest.remarks, *_load_remarks(manifest, asked, load)]
    if len(manifest.hardware) == 1 and asked.hardware not in (None, manifest.hardware[0]):
        remarks.append(f"the file is for {manifest.hardware[0]}, judged on {asked.hardware} as asked")
    found = read[0] if len(read) == 1 else _pair(read, services, load)
    return dataclasses.replace(found, remarks=(*remarks, *found.remarks))


def _hardware(manifest: Manifest, asked: GivenToo, where: object) -> str:
    if asked.hardware:
        return asked.hardware
    if len(manifest.hardware) == 1:
        return manifest.hardware[0]
    if manifest.hardware:
        raise ProblemError(f"{where} names several machines ({', '.join(manifest.hardware)}): say which with --hw")
    raise ProblemError(f"{where} does not say what it runs on: give --hw (autotune hw list)")


def _chosen(manifest: Manifest, asked: GivenToo, where: object) -> tuple[EngineService, ...]:
    """One service, or the two of a pair."""
    services = _merged(manifest)
    if asked.service is not None:
        named = [service for service in manifest.services if service.name == asked.service]
        if not named:
            raise ProblemError(f"{where} has no service {asked.service}; it has {', '.join(s.name for s in services)}")
        return (named[0],)
    if _is_pair(services):
        return services
    if parts_of(manifest) == (None,):
        return services[:1]  # further commands of a script, which a remark counts
    raise ProblemError(
        f"{where} starts {len(services)} engines that are not one prefill and one decode pool: "
        f"{', '.join(service.name for service in services[:12])}; say which with --service"
    )


def parts_of(manifest: Manifest) -> tuple[str | None, ...]:
    """What is judged one by one: none by name where all that a file starts is one pool or one pair, else each engine."""
    services = _merged(manifest)
    one = all(service.text == services[0].text and service.at for service in services[1:])
    if one or _is_pair(services):
        return (None,)
    return tuple(dict.fromkeys(service.name for service in services))


def _is_pair(services: Sequence[EngineService]) -> bool:
    """Whether two services are the two sides of one."""
    return len(services) == 2 and {service.role or _role(service) for service in services} == {"prefill", "decode"}


def _merged(manifest: Manifest) -> tuple[EngineService, ...]:
    """Services that differ in ports and devices alone as the instances of one; of alternatives that are alike, the first."""
    found: dict[tuple[object, ...], EngineService] = {}
    for service in manifest.services:
        key = (PLACED.sub("", service.text), service.role, service.nodes, service.gpus_per_node, service.version, service.at)
        first = found.get(key)
        more = service.instances if not manifest.alternatives else 0
        found[key] = dataclasses.replace(first, instances=first.instances + more) if first else service
    return tuple(found.values())


def _role(service: EngineService) -> str | None:
    """The role that the command itself says, as far as its words tell."""
    words = find_command(service.text, service.environment, service.at).words
    for at, word in enumerate(words):
        value = word.partition("=")[2] or (words[at + 1] if at + 1 < len(words) else "")
        if word.startswith("--disaggregation-mode"):
            return value
        if word.startswith("--kv-transfer-config") or word.startswith("--kv_transfer_config"):
            return "prefill" if "kv_producer" in value else "decode" if "kv_consumer" in value else None
        if word.startswith("--server_role"):
            return ROLES.get(value.lower())
        if word in ("--is-prefill-worker", "--is-decode-worker"):
            return word.split("-")[3]
    return None


def _load(manifest: Manifest) -> Load | None:
    """The load of the file's own benchmark, where it names one alone and a service is asked about."""
    if len(manifest.concurrencies) != 1:
        return None
    return validated(Load, {"concurrency": manifest.concurrencies[0]}, "the file's benchmark")


def _load_remarks(manifest: Manifest, asked: GivenToo, load: Load | None) -> Iterator[str]:
    if asked.load is None and load is not None:
        yield f"judged with {load.concurrency} requests in flight, as the file's benchmark keeps"
    if asked.load is None and len(manifest.concurrencies) > 1:
        listed = ", ".join(map(str, manifest.concurrencies))
        yield f"the file's benchmark keeps {listed} requests in flight: --clients N judges the service under one of them"


def _read(
    service: EngineService, manifest: Manifest, services: Sequence[EngineService], asked: GivenToo, where: object
) -> ReadCommand:
    hardware = str(asked.hardware)
    version = _version(service, asked, where)
    named = _named(service, services, manifest, asked, hardware, version)
    found = read_command(
        service.text,
        hardware=hardware,
        version=version,
        isl_tokens=asked.isl_tokens or manifest.isl_tokens or USUAL_TOKENS,
        osl_tokens=asked.osl_tokens or manifest.osl_tokens or USUAL_TOKENS,
        size=asked.size,
        mtp_acceptance=asked.mtp_acceptance,
        load=asked.load,
        model=named.model,
        precision=named.precision,
        role=service.role,
        environment=service.environment,
        at=service.at,
        folder=service.folder,
    )
    return _placed(found, service, named, hardware)


def _version(service: EngineService, asked: GivenToo, where: object) -> str | None:
    """Of the engine; raises ProblemError for an image that does not tell."""
    if asked.version or service.version or service.image is None:
        return asked.version or service.version
    raise ProblemError(
        f"{where}: the image {service.image[:120]} of {service.name} does not say which version of the engine it holds: "
        "give --engine-version"
    )


def _named(
    service: EngineService,
    services: Sequence[EngineService],
    manifest: Manifest,
    asked: GivenToo,
    hardware: str,
    version: str | None,
) -> ServedModel:
    """The model as asked, as the command has it, or as the file serves it where the command has a path that says nothing."""
    if asked.model:
        return ServedModel(asked.model, asked.precision)
    said, served = _said(service, hardware, version)
    stored = manifest.precision.lower() if manifest.precision else None
    if stored is None:
        try:
            served_model(said)
        except AutotuneError:
            pass
        else:
            return ServedModel(None, asked.precision)
    others = (_said(other, hardware, version) for other in services)
    public = served or next((name for path, name in others if path == said and name), None)
    checkpoint = find_checkpoint(public or said)
    remark = f"{said} is taken for {public}, the name that it is served under (another: --model)" if public else ""
    if checkpoint is None:  # the name that people know is the one to say that it is not known
        return ServedModel(public, asked.precision, remark)
    fitting = [r for r in FORMATS.get(stored or "", ()) if r in load_model(checkpoint.model).checkpoints]
    if stored and checkpoint.precision not in FORMATS.get(stored, (stored,)):
        return ServedModel(checkpoint.model, asked.precision or next(iter(fitting), None), remark)
    return ServedModel(public or said, asked.precision, remark)


def _said(service: EngineService, hardware: str, version: str | None) -> tuple[str, str | None]:
    """(model of the command, name that it is served under)."""
    invocation = find_command(service.text, service.environment, service.at)
    engine = engine_for(invocation.engine, load_hardware(hardware).gpu.vendor)
    command = split_options(invocation, engine, version, service.folder)
    served = command.text("--served-model-name") or command.text("--served_model_name")
    return command.model, served.split()[0] if served else None


def _placed(found: ReadCommand, service: EngineService, named: ServedModel, hardware: str) -> ReadCommand:
    """With all instances of the service, on the nodes and GPUs that the file gives each."""
    role, pool = next(iter(found.deployment.pools.items()))
    needed = pool.layout.gpus * pool.instances
    remarks = [*([named.remark] if named.remark else []), *service.remarks, *found.remarks]
    conflicts = list(found.conflicts)
    whole_node = load_hardware(hardware).gpus_per_node
    if service.gpus_per_node is not None:
        given = service.nodes * service.gpus_per_node
        of = f"{service.nodes} x {service.gpus_per_node} GPUs"
        if service.gpus_per_node > whole_node:
            conflicts.append(f"{service.name}: {service.gpus_per_node} GPUs of one node, {hardware} has {whole_node}")
        if needed > given:
            conflicts.append(f"{service.name}: the command needs {needed} GPUs, the file gives an instance {given} ({of})")
        elif needed < given:
            remarks.append(f"{service.name}: the command uses {needed} of the {given} GPUs that an instance has ({of})")
    deployment = found.deployment.with_pool(role, instances=pool.instances * service.instances)
    return dataclasses.replace(
        found,
        deployment=validated(Deployment, deployment.model_dump(mode="json"), service.name),
        remarks=tuple(remarks),
        conflicts=tuple(conflicts),
    )


def _pair(read: Sequence[ReadCommand], services: Sequence[EngineService], load: Load | None) -> ReadCommand:
    """A prefill and a decode pool as one deployment: a service under a load, else both steps."""
    by_role: dict[PoolRole, ReadCommand] = {next(iter(found.deployment.pools)): found for found in read}
    if set(by_role) != {"prefill", "decode"}:
        names = ", ".join(f"{service.name} ({role})" for service, role in zip(services, by_role, strict=False))
        raise ProblemError(f"no prefill and decode pool, but {names}; say which with --service")
    prefill, decode = by_role["prefill"], by_role["decode"]
    _check_alike(prefill.deployment, decode.deployment)
    pools = {role: _own_precision(by_role[role], role, decode.deployment).model_dump(mode="json") for role in by_role}
    document = decode.deployment.model_dump(mode="json")
    document |= {"pools": pools, "phase": "serve" if load else "decode", "load": load.model_dump() if load else None}
    limits = [found.longest_tokens for found in (prefill, decode) if found.longest_tokens]
    return ReadCommand(
        validated(Deployment, document, "the pair"),
        ignored=tuple(dict.fromkeys((*prefill.ignored, *decode.ignored))),
        unmodelled=tuple(dict.fromkeys((*prefill.unmodelled, *decode.unmodelled))),
        longest_tokens=min(limits, default=None),
        conflicts=tuple(_prefixed(by_role, "conflicts")),
        remarks=tuple(_prefixed(by_role, "remarks")),
        written={**prefill.written, **decode.written},
        command=decode.command,
    )


def _prefixed(by_role: Mapping[PoolRole, ReadCommand], field: str) -> Iterator[str]:
    """Lines of both pools; one that both have, once."""
    both = [set(getattr(found, field)) for found in by_role.values()]
    for role, found in by_role.items():
        for line in getattr(found, field):
            shared = all(line in lines for lines in both)
            if not shared or role == next(iter(by_role)):
                yield line if shared else f"{role}: {line}"


def _check_alike(prefill: Deployment, decode: Deployment) -> None:
    for what, one, other in (
        ("model", prefill.model, decode.model),
        ("engine", prefill.engine, decode.engine),
    ):
        if one != other:
            raise ProblemError(f"prefill and decode differ in their {what} ({one}, {other}): no pair; judge one with --service")


def _own_precision(found: ReadCommand, role: PoolRole, main: Deployment) -> Pool:
    """The pool, with its precision where that is not the deployment's."""
    pool = found.deployment.pools[role]
    same = found.deployment.precision == main.precision
    return pool if same else pool.model_copy(update={"precision": found.deployment.precision})
