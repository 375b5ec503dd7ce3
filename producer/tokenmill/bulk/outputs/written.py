"""The rows of a run by what it has left on disk, also while it goes on. Knows no queue."""

import json
from pathlib import Path

from tokenmill.bulk.output import OutputError, folder_of
from tokenmill.bulk.outputs.paths import out_format_of, paths_of
from tokenmill.bulk.outputs.source import RunRows
from tokenmill.bulk.spec import RunSpec, SpecError


def rows_of(out: Path) -> RunRows:
    """The run's own rows, wherever the format that was asked for has put them. OutputError: there is no such run."""
    try:
        manifest = json.loads((folder_of(out) / "manifest.json").read_bytes())
        spec = RunSpec.from_json(manifest["spec"])
        paths = paths_of(out, out_format_of(spec))
        return RunRows(paths.rows, paths.errors, model=spec.recipe.model, created=int(manifest.get("created") or 0))
    except (OSError, ValueError, KeyError, TypeError, SpecError) as error:
        raise OutputError(f"{out} is no output of a run: {error}") from error
