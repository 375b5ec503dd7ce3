"""The strict, frozen base of every message, and how its validation errors are told to people. Knows no field."""

from collections.abc import Mapping
from typing import Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from tokenmill.wire.errors import InvalidRequestError

ModelT = TypeVar("ModelT", bound="Frozen")


class Frozen(BaseModel):
    """Strict: `True` is no integer and `"8"` is no number; unknown fields are refused."""

    # defer_build: validators are made at first use, which a producer that only reads does not pay for at import.
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    @classmethod
    def of_checked(cls, **fields: object) -> Self:
        """Of every field, in the model's order, with values that are checked already: nothing is looked at."""
        model = cls.__new__(cls)
        object.__setattr__(model, "__dict__", fields)
        object.__setattr__(model, "__pydantic_fields_set__", set(fields))
        object.__setattr__(model, "__pydantic_extra__", None)
        object.__setattr__(model, "__pydantic_private__", None)
        return model


def validate(model: type[ModelT], fields: dict[str, object], *, prefixes: Mapping[str, str] | None = None) -> ModelT:
    """The model made of `fields`, or InvalidRequestError naming the first field at fault by its path.

    `prefixes`: field -> what stands before it where the producer wrote it, such as `x.`
    """
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise _explain(error, prefixes or {}) from None


def _explain(error: ValidationError, prefixes: Mapping[str, str]) -> InvalidRequestError:
    first = error.errors(include_url=False)[0]
    param = prefixes.get(str(first["loc"][0]), "") + _path(first["loc"]) if first["loc"] else None
    if first["type"] == "extra_forbidden":
        return InvalidRequestError(f"unknown field {param!r}", param=param, code="unknown_field")
    if first["type"] == "value_error":
        return InvalidRequestError(f"{param}: {first['ctx']['error']}", param=param)
    if first["type"] == "missing":
        return InvalidRequestError(f"{param} is missing", param=param)
    reason = first["msg"][0].lower() + first["msg"][1:]
    return InvalidRequestError(f"{param}: {reason}{_got(first['input'])}", param=param)


def _path(location: tuple[int | str, ...]) -> str:
    """`("messages", 0, "content")` as `messages[0].content`; printable whatever the producer called its fields."""
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    return path.removesuffix(".[key]").encode("utf-8", "backslashreplace").decode()


def _got(value: object) -> str:
    """Numbers are shown; of anything else only the type, since errors are logged and prompts are not."""
    if value is None or isinstance(value, bool | float):
        return f", got {value}"
    if isinstance(value, int):
        return f", got {value}" if abs(value) < 1 << 70 else ", got an integer beyond 64 bits"
    return f", got {type(value).__name__}"
