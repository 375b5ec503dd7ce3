"""Writes the settings table of docs/operations.md from the settings class. Knows no setting by name.

python -m docs.generate            rewrites the table; a test compares
"""

import json
import sys
from pathlib import Path

from pydantic.fields import FieldInfo
from tokenmill_worker.settings import WorkerSettings

PAGE = Path(__file__).with_name("operations.md")
BEGIN, END = "<!-- settings: made by docs/generate.py -->\n", "<!-- end of settings -->\n"


def settings_table() -> str:
    rows = [_row(name, field) for name, field in WorkerSettings.model_fields.items()]
    return "\n".join(["| setting | environment | default | |", "|---|---|---|---|", *rows, ""])


def _row(name: str, field: FieldInfo) -> str:
    default = "none" if field.default is None else f"`{json.dumps(field.get_default(call_default_factory=True))}`"
    return f"| `{name}` | `TOKENMILL_{name.upper()}` | {default} | {field.description} |"


def with_table(page: str) -> str:
    """The page with a fresh table between its two marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{settings_table()}{END}{after}"


def main() -> None:
    PAGE.write_text(with_table(PAGE.read_text()))
    sys.stdout.write(f"{PAGE.name}: {len(WorkerSettings.model_fields)} settings\n")


if __name__ == "__main__":
    main()
