"""The trace that a caller is in, to be carried through the queue. Imports no OpenTelemetry: who traces has done so."""

import re
import sys
from collections.abc import Mapping

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


def current_traceparent() -> str | None:
    """Of the caller's current span, as W3C writes it; None where nobody traces."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def carried(headers: Mapping[str, str]) -> str | None:
    """Our own span if we trace, else the one that came with an HTTP request; what is none is ignored, as W3C asks."""
    given = headers.get("traceparent", "")
    return current_traceparent() or (given if _TRACEPARENT.fullmatch(given) else None)
