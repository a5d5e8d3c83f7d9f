"""What `autotune check` says of launches that ran in public: the single-node scripts of SemiAnalysisAI/InferenceX.

usage: python study.py CHECKOUT > launches.csv      (a checkout of the repository, Apache-2.0; it is not kept here)

Every point of a search space (configs/*.yaml) names a script, its image, its layout and its lengths; what the benchmark's runner
sets around the script is set here. Of points that differ in requests in flight alone the most crowded stands for all. All of them
ran, so "does not work" is wrong unless the release is; images without a release (nightly builds) are held against the newest.
"""

from __future__ import annotations

import csv
import itertools
import re
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from autotune.auditing.checking import check
from autotune.auditing.commands import read_command
from autotune.auditing.goals import Goals
from cost_models.errors import AutotuneError

HARDWARE = {
    "b200": "hgx-b200", "b300": "hgx-b300", "h200": "hgx-h200", "h100": "hgx-h100",
    "mi300x": "mi300x", "mi325x": "mi325x", "mi355x": "mi355x",
}  # fmt: skip
OTHER_ENGINES = ("atom",)
SCRIPTS = "benchmarks/single_node/fixed_seq_len"
RELEASE = re.compile(r":[^:]*?v?(\d+\.\d+(?:\.\d+)?(?:rc\d+|\.post\d+)?)")
REASONS_SHOWN = 2


@dataclass(frozen=True, slots=True)
class Launch:
    """One start of one script."""

    script: Path
    machine: str
    image: str
    model: str
    tp: int
    ep: int
    attention_dp: bool
    in_flight: int
    isl: int
    osl: int

    @property
    def version(self) -> str | None:
        found = RELEASE.search(self.image)
        if found is None:
            return None
        return ".".join(found[1].split(".")[:2]) if "tensorrt-llm" in self.image else found[1]

    def environment(self) -> dict[str, str]:
        """As the benchmark's runner sets it."""
        counts = {"TP": self.tp, "EP_SIZE": self.ep, "CONC": self.in_flight, "ISL": self.isl, "OSL": self.osl}
        longest = self.isl + self.osl + 256
        return {
            **{name: str(count) for name, count in counts.items()},
            "MODEL": self.model,
            "MODEL_PATH": self.model,
            "DP_ATTENTION": str(self.attention_dp).lower(),
            "PORT": "8000",
            "MAX_MODEL_LEN": str(longest),
            "EVAL_ONLY": "false",
        }


def launches(root: Path) -> Iterator[Launch]:
    """All points of the search spaces that run on one node of a machine known here."""
    files = itertools.chain(root.glob("configs/*master.yaml"), root.glob("configs/deprecated/*.yaml"))
    for entry in (entry for file in sorted(files) for entry in yaml.safe_load(file.read_text()).values()):
        machine = entry["runner"].split("-")[0]
        if entry.get("multinode") or machine not in HARDWARE or entry["framework"] in OTHER_ENGINES:
            continue
        for lengths in entry["scenarios"].get("fixed-seq-len", ()):
            for point in lengths["search-space"]:
                if script := script_of(root / SCRIPTS, entry, machine, point.get("spec-decoding") == "mtp"):
                    yield launch_of(script, machine, entry, lengths, point)


def launch_of(script: Path, machine: str, entry: dict[str, Any], lengths: dict[str, Any], point: dict[str, Any]) -> Launch:
    """The most crowded of a point's runs."""
    most = max(point.get("conc-list") or [point["conc-end"]])
    ep, attention_dp = point.get("ep", 1), bool(point.get("dp-attn"))
    return Launch(
        script, machine, entry["image"], entry["model"], point["tp"], ep, attention_dp, most, lengths["isl"], lengths["osl"]
    )


def script_of(folder: Path, entry: dict[str, Any], machine: str, drafts: bool) -> Path | None:
    """The file that the runner starts; scripts that went out of use lie in a folder of their own."""
    start, end = f"{entry['model-prefix']}_{entry['precision']}_{machine}", "_mtp.sh" if drafts else ".sh"
    engine = "_trt" if entry["framework"] == "trt" else ""
    names = (f"{start}_{entry['framework']}{end}", f"{start}{engine}{end}")
    found = (path / name for name in names for path in (folder, folder / "deprecated") if (path / name).exists())
    return next(found, None)


def judged(launch: Launch) -> tuple[str, str]:
    """(answer, why)."""
    try:
        found = read_command(
            launch.script.read_text(),
            hardware=HARDWARE[launch.machine],
            version=launch.version,
            isl_tokens=launch.isl,
            osl_tokens=launch.osl,
            environment=launch.environment(),
        )
        verdict = check(found.deployment, Goals(), found)
    except AutotuneError as error:
        return "not read", str(error)[:160]
    reasons = verdict.conflicts if verdict.answer == "does not work" else verdict.unmodelled
    return verdict.answer, " | ".join(line[:120] for line in reasons[:REASONS_SHOWN])


def main() -> None:
    """Judge all launches of the checkout named on the command line and print one line for each."""
    alike: dict[tuple[Any, ...], Launch] = {}
    for launch in launches(Path(sys.argv[1])):
        key = (launch.script, launch.image, launch.tp, launch.ep, launch.attention_dp, launch.isl, launch.osl)
        alike[key] = max(launch, alike.get(key, launch), key=lambda one: one.in_flight)
    with ProcessPoolExecutor() as processes:
        answers = list(processes.map(judged, alike.values(), chunksize=8))
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["script", "image", "tp", "ep", "attention_dp", "in_flight", "isl", "osl", "answer", "why"])
    for launch, (answer, why) in zip(alike.values(), answers, strict=True):
        shape = (launch.tp, launch.ep, launch.attention_dp, launch.in_flight, launch.isl, launch.osl)
        writer.writerow([launch.script.name, launch.image, *shape, answer, why])
    sys.stderr.write(f"{dict(Counter(answer for answer, _ in answers))}\n")


if __name__ == "__main__":
    main()
