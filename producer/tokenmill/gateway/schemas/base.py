"""What bodies share: fields of OpenAI's that both endpoints know, and what becomes of them. Knows no route."""

from typing import Any

from pydantic import BaseModel, ConfigDict

# Not the queue's to know: how the gateway answers.
_OWN = frozenset(("stream", "stream_options", "x"))


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore")

    include_usage: bool | None = None


class GenerationBody(BaseModel):
    """Fields that are not listed go to the queue as they are, which refuses by name what it does not know."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    x: dict[str, Any] | None = None

    def fields(self) -> dict[str, Any]:
        """As `AsyncClient.submit` takes them; `x` beside the rest."""
        given = {name: value for name, value in self.given().items() if name not in _OWN and value is not None}
        return given | (self.x or {})

    def given(self) -> dict[str, Any]:
        """The fields that were sent, nested ones as they came."""
        return {name: getattr(self, name) for name in self.model_fields_set}

    @property
    def has_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)
