"""Makes a request's prompt or messages from a row's fields. Knows no files, no queue and no model.

By default a row's `messages` or `prompt` is used; `column` names another one; `template` is a Jinja2 template over all
columns, run in Jinja2's sandbox. A prompt goes out as one user message, after a system message if there is one, for the
model's own chat template to wrap; raw, it goes out as it is.
"""

import json
from collections.abc import Callable
from typing import TypeAlias

from tokenmill.bulk.identity import Recipe
from tokenmill.bulk.parameters import row_parameters
from tokenmill.bulk.rows import JSON, Fields
from tokenmill.bulk.templates import PromptError, TemplateError, compile_template

__all__ = ["PromptError", "Renderer", "TemplateError", "make_renderer", "renderer_of"]

Renderer: TypeAlias = Callable[[Fields], Fields]


def renderer_of(recipe: Recipe) -> Renderer:
    """All that the recipe says of a row's request: its prompt, and the parameters that it brings along."""
    render = make_renderer(column=recipe.column, template=recipe.template, system=recipe.system, is_raw=recipe.is_raw)
    if not recipe.parameters:
        return render
    return lambda fields: {**render(fields), **row_parameters(recipe.parameters, fields)}


def make_renderer(
    *, column: str | None = None, template: str | None = None, system: str | None = None, is_raw: bool = False
) -> Renderer:
    """A function from a row's fields to {"messages": ...} or {"prompt": ...}; it raises PromptError.

    TemplateError: the template cannot be used, or a system message was to be sent raw.
    """
    if system is not None and is_raw:
        raise TemplateError("a system message cannot be sent raw: it needs the model's chat template")
    return _with_system(_prompt_renderer(column, template, is_raw=is_raw), system)


def _prompt_renderer(column: str | None, template: str | None, *, is_raw: bool) -> Renderer:
    if template is not None:
        return _wrapping(compile_template(template), is_raw=is_raw)
    if column is not None:
        return _wrapping(lambda fields: _column(fields, column), is_raw=is_raw)
    return _wrapping(_default, is_raw=is_raw)


def _with_system(render: Renderer, system: str | None) -> Renderer:
    """A row that has a system message of its own keeps it."""
    if system is None:
        return render

    def render_with_system(fields: Fields) -> Fields:
        messages = render(fields)["messages"]
        turns = messages if isinstance(messages, list) else []
        first = turns[0] if turns else None
        if isinstance(first, dict) and first.get("role") in ("system", "developer"):
            return {"messages": turns}
        return {"messages": [{"role": "system", "content": system}, *turns]}

    return render_with_system


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
    if column not in fields:
        raise PromptError(f"no column {column!r}; this row has {_names(fields)}")
    value = fields[column]
    if value is None:
        raise PromptError(f"the column {column!r} is empty in this row")
    return value


def _default(fields: Fields) -> JSON:
    messages = fields.get("messages")
    if isinstance(messages, str):  # a CSV cell
        return _parse_messages(messages)
    if messages is not None:
        return messages
    if fields.get("prompt") is not None:
        return fields["prompt"]
    if "messages" in fields or "prompt" in fields:
        raise PromptError("the columns 'prompt' and 'messages' are empty in this row")
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
