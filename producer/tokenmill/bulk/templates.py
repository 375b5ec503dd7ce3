"""Jinja2 templates over a row's columns, in a sandbox: they read values, change nothing, and end. Knows no requests."""

from collections.abc import Callable, Iterable
from typing import Any

from tokenmill.bulk.rows import Fields
from tokenmill.wire.keys import MAX_BODY_BYTES

MAX_CHARS = MAX_BODY_BYTES  # of a prompt: a request with more is refused anyway
MAX_POWER = 1_000  # exponents beyond it make numbers that take minutes


class PromptError(Exception):
    """This row gives no prompt; the message says why."""


class TemplateError(Exception):
    """The template itself is at fault, or cannot be used here; the message says what to do."""


def compile_template(source: str) -> Callable[[Fields], str]:
    """A function from a row's fields to the text; it raises PromptError. TemplateError: no template, or no Jinja2."""
    try:
        import jinja2
    except ModuleNotFoundError as error:
        raise TemplateError("templates need Jinja2: pip install 'tokenmill[bulk]'") from error
    try:
        template = _environment().from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"template, line {error.lineno}: {error.message}") from error

    def render(fields: Fields) -> str:
        try:
            return _bounded(template.generate(fields))
        except (jinja2.TemplateError, ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise PromptError(f"template: {error}") from error

    return render


def _bounded(pieces: Iterable[str]) -> str:
    text: list[str] = []
    num_chars = 0
    for piece in pieces:
        num_chars += len(piece)
        if num_chars > MAX_CHARS:
            raise PromptError(f"template: its text is longer than {MAX_CHARS} characters")
        text.append(piece)
    return "".join(text)


def _environment() -> Any:
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Environment(ImmutableSandboxedEnvironment):
        """The sandbox bounds `range`; repetition and powers are bounded here."""

        intercepted_binops = frozenset(("*", "**"))

        def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
            if operator == "**" and isinstance(right, (int, float)) and abs(right) > MAX_POWER:
                raise OverflowError(f"an exponent beyond {MAX_POWER}")
            if operator == "*" and _repeated_length(left, right) > MAX_CHARS:
                raise OverflowError(f"a repetition longer than {MAX_CHARS}")
            return super().call_binop(context, operator, left, right)

    return Environment(undefined=jinja2.StrictUndefined, autoescape=False)


def _repeated_length(left: Any, right: Any) -> int:
    """Of text or a list times a number; 0 for anything else."""
    for value, times in ((left, right), (right, left)):
        if isinstance(value, (str, bytes, list, tuple)) and isinstance(times, int):
            return len(value) * times
    return 0
