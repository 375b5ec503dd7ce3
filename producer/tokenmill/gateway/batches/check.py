"""Is this file one that can be run as a batch? Read once, a line at a time; a batch with a bad line does not begin.

What a single request's parameters are worth is not judged here: such a request fails alone, in the error file.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tokenmill.bulk.batch_lines import is_batch_line
from tokenmill.bulk.inputs.json_lines import BOM, parse_json_row
from tokenmill.bulk.rows import BadRow, Fields, Row
from tokenmill.gateway.batches.record import BatchError

MAX_ERRORS = 100  # told of one file: enough to see what is wrong with it
MAX_CUSTOM_ID_CHARS = 512


class Checked(NamedTuple):
    """`model`: the one that all lines name."""

    num_requests: int
    model: str | None
    errors: tuple[BatchError, ...]


@dataclass(slots=True)
class _Check:
    endpoint: str
    num_requests: int = 0
    model: str | None = None
    errors: list[BatchError] = field(default_factory=list)
    names: set[str] = field(default_factory=set)


def check_input(path: Path, *, endpoint: str, max_requests: int) -> Checked:
    """OSError: the file cannot be read."""
    check = _Check(endpoint)
    for number, line in _lines(path):
        check.num_requests += 1
        if check.num_requests > max_requests:
            check.errors.append(
                _error("too_many_requests", f"more than {max_requests:,} requests; make several batches")
            )
            break
        error = _fault(check, parse_json_row(number, line), number)
        if error is not None:
            check.errors.append(error)
            if len(check.errors) >= MAX_ERRORS:
                break
    if check.num_requests == 0:
        check.errors.append(_error("empty_file", "the input file has no lines"))
    return Checked(check.num_requests, check.model, tuple(check.errors))


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that hold something, by their number in the file."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            content = line.removeprefix(BOM) if number == 1 else line
            if content.strip():
                yield number, content


def _fault(check: _Check, row: Row | BadRow, line: int) -> BatchError | None:
    """The first thing that is wrong with one line; what is right is noted."""
    if isinstance(row, BadRow):
        return _error("invalid_json_line", row.reason, line)
    fields = row.fields
    return _shape_fault(fields, line) or _name_fault(check, fields, line) or _target_fault(check, fields, line)


def _shape_fault(fields: Fields, line: int) -> BatchError | None:
    missing = {"custom_id", "method", "url", "body"} - fields.keys()
    if missing:
        return _error("missing_required_parameter", f"the line has no {min(missing)!r}", line, min(missing))
    if not is_batch_line(fields):
        return _error("invalid_request", "body must be an object", line, "body")
    if fields["method"] != "POST":
        return _error("invalid_method", "method must be POST", line, "method")
    return None


def _name_fault(check: _Check, fields: Fields, line: int) -> BatchError | None:
    name = fields["custom_id"]
    if not isinstance(name, str) or not 0 < len(name) <= MAX_CUSTOM_ID_CHARS:
        reason = f"custom_id must be a string of 1 to {MAX_CUSTOM_ID_CHARS} characters"
        return _error("invalid_custom_id", reason, line, "custom_id")
    if name in check.names:
        return _error("duplicate_custom_id", f"the custom_id {name!r} is that of an earlier line", line, "custom_id")
    check.names.add(name)
    return None


def _target_fault(check: _Check, fields: Fields, line: int) -> BatchError | None:
    if fields["url"] != check.endpoint:
        return _error("mismatched_url", f"url must be the batch's endpoint, {check.endpoint}", line, "url")
    body = fields["body"]
    model = body.get("model") if isinstance(body, dict) else None
    if not isinstance(model, str) or not model:
        return _error("missing_required_parameter", "the body has no 'model'", line, "body.model")
    if check.model not in (None, model):
        return _error("mismatched_model", f"all lines of a batch name one model, {check.model!r}", line, "body.model")
    check.model = model
    return None


def _error(code: str, message: str, line: int | None = None, param: str | None = None) -> BatchError:
    return BatchError(code=code, message=message, line=line, param=param)
