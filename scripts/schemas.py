"""Write the published schemas (docs/schemas) that are missing; refuses to change one that is there.

python scripts/schemas.py [FOLDER]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from autotune.cli.published import ENTRIES, Published, schema_of

FOLDER = Path(__file__).parent.parent / "docs" / "schemas"


def text_of(schema: dict[str, Any]) -> str:
    """A schema as it is published."""
    return json.dumps(schema, indent=1, sort_keys=True) + "\n"


def changed(entry: Published, folder: Path) -> bool:
    """Whether a document no longer is what its version was published as."""
    file = folder / entry.file_name
    return file.exists() and file.read_text(encoding="utf-8") != text_of(schema_of(entry))


def publish(entries: tuple[Published, ...], folder: Path) -> list[str]:
    """Write what is missing; returns the documents that changed without a new version, whose files are left alone."""
    folder.mkdir(parents=True, exist_ok=True)
    refused = [entry.id for entry in entries if changed(entry, folder)]
    for entry in entries:
        file = folder / entry.file_name
        if not file.exists():
            file.write_text(text_of(schema_of(entry)), encoding="utf-8")
    return refused


def main() -> int:
    """Publish into the folder given, or docs/schemas; exit code 1 if something changed without a new version."""
    refused = publish(ENTRIES, Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
    for name in refused:
        sys.stderr.write(f"{name} changed: raise its version in autotune/cli/published.py\n")
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
