"""What launches a plan, as one archive: the files that `autotune export --out` writes."""

from __future__ import annotations

import io
import re
import tempfile
import zipfile
from pathlib import Path

from autotune.documents.results import load_plans
from autotune.errors import ProblemError
from autotune.exporters.folders import target_files, write_scripts
from autotune.exporters.targets.base import TargetOptions
from autotune.exporters.targets.registry import MODULES, load_target

FORMATS = tuple(MODULES)


def zipped(folder: Path, rank: str, format_name: str, router_image: str | None) -> tuple[str, bytes]:
    """Name and content of the archive; raises AutotuneError where there is no such plan or the target cannot say it."""
    plans = load_plans(folder).plans
    plan = next((one for one in plans if str(one.rank) == rank), None)
    if plan is None:
        raise ProblemError(f"{folder.name} has plans 1..{len(plans)}, not {rank[:20]!r}")
    target = load_target(format_name[:40])
    files = target_files(plan, target, TargetOptions(router_image=router_image))
    content = io.BytesIO()
    with tempfile.TemporaryDirectory() as place, zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        written = Path(place, "launch")
        write_scripts(written, plan, files, target)
        for path in sorted(written.iterdir()):
            archive.write(path, path.name)  # with its mode: scripts stay executable
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', folder.name)}_plan-{plan.rank}_{target.name}.zip", content.getvalue()
