"""Makes a request's prompt or messages from a row's fields. Knows no files, no queue and no model.

By default a row's `messages` or `prompt` is used; `column` names another one; `template` is a Jinja2 template over all
columns, run in Jinja2's sandbox. A prompt goes out as one user message, for the model's own chat template to wrap;
raw, it goes out as it is.
"""

import json
from collections.abc import Callable
from typing import TypeAlias

from tokenmill.bulk.identity import Recipe
from tokenmill.bulk.rows import JSON, Fields

Renderer: TypeAlias = Callable[[Fields], Fields]


class PromptError(Exception):
    """This row gives no prompt; the message says why."""


class TemplateError(Exception):
    """The template itself is at fault, or cannot be used here; the message says what to do."""


def renderer_of(recipe: Recipe) -> Renderer:
    return make_renderer(column=recipe.column, template=recipe.template, is_raw=recipe.is_raw)


def make_renderer(*, column: str | None = None, template: str | None = None, is_raw: bool = False) -> Renderer:
    """A function from a row's fields to {"messages": ...} or {"prompt": ...}; it raises PromptError."""
    if template is not None:
        return _wrapping(_template_text(template), is_raw=is_raw)
    if column is not None:
        return _wrapping(lambda fields: _column(fields, column), is_raw=is_raw)
    return _wrapping(_default, is_raw=is_raw)


def _wrapping(value_of: Callable[[Fields], JSON], *, is_raw: bool) -> Renderer:
    def render(fields: Fields) -> Fields:
        value = value_of(fields)
        if isinstance(value, list):
            return _messages(value, is_raw=is_raw)
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        return {"prompt": text} if is_raw else {"messages": [{"role": "user", "content": text}]}

    return render


def _messages(value: list[JSON], *, is_raw: bool) -> Fields:
    if is_raw:
        raise PromptError("messages cannot be sent raw: they need the model's chat template")
    return {"messages": value}


def _column(fields: Fields, column: str) -> JSON:
    value = fields.get(column)
    if value is None:
        raise PromptError(f"no column {column!r}; this row has {_names(fields)}")
    return value


def _default(fields: Fields) -> JSON:
    messages = fields.get("messages")
    if isinstance(messages, str):  # a CSV cell
        return _parse_messages(messages)
    if messages is not None:
        return messages
    if fields.get("prompt") is not None:
        return fields["prompt"]
    raise PromptError(f"no column 'prompt' or 'messages'; name one with --column: this row has {_names(fields)}")


def _parse_messages(text: str) -> JSON:
    try:
        value: JSON = json.loads(text)
    except ValueError as error:
        raise PromptError(f"the column 'messages' is not JSON: {error}") from error
    if not isinstance(value, list):
        raise PromptError("the column 'messages' must be a JSON array")
    return value


def _names(fields: Fields) -> str:
    return ", ".join(map(repr, fields)) or "no columns"


def _template_text(source: str) -> Callable[[Fields], JSON]:
    try:
        import jinja2
        import jinja2.sandbox
    except ModuleNotFoundError as error:
        raise TemplateError("templates need Jinja2: pip install 'tokenmill[bulk]'") from error
    environment = jinja2.sandbox.SandboxedEnvironment(undefined=jinja2.StrictUndefined, autoescape=False)
    try:
        template = environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise TemplateError(f"template, line {error.lineno}: {error.message}") from error

    def render(fields: Fields) -> JSON:
        try:
            return template.render(fields)
        except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise PromptError(f"template: {error}") from error

    return render
