"""What a run is, as one value and as JSON, so that it can be sent to another machine. Knows no queue and no files."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

from tokenmill.bulk.identity import Recipe
from tokenmill.bulk.rows import Fields

Order = Literal["input", "completion"]

SPEC_VERSION = 1


class SpecError(ValueError):
    """This is no description of a run, or one of a newer version; the message says which part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """Where the rows come from: paths, globs, folders or URLs. `format` None: told by each name."""

    paths: tuple[str, ...]
    format: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSpec:
    """Which queue. Its server's URL is not here: that may hold a password, and each machine has its own way there."""

    name: str = "default"
    partitions: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """All of a run but the server. `window` None: as many rows in flight as the fleet of workers has room for.

    `samples`: completions for each row of the input; asking for more of them later only adds the new ones.
    `only_failed`: nothing but the rows that failed last time, and not because they are bad.
    `deadline`: Unix seconds, after which a bulk worker stops it; what is done stays.
    `out` is what the user asked for; `out_format` None: told by its name. `max_errors`: the run ends when more rows
    than that have failed.
    """

    input: InputSpec
    out: str
    out_format: str | None = None
    recipe: Recipe = field(default_factory=Recipe)
    samples: int = 1
    limit: int | None = None
    window: int | None = None
    order: Order = "input"
    max_errors: int | None = None
    only_failed: bool = False
    priority: str = "bulk"
    tenant: str | None = None
    deadline: int | None = None
    queue: QueueSpec = field(default_factory=QueueSpec)

    def to_json(self) -> Fields:
        value = asdict(self)
        value["input"]["paths"] = list(self.input.paths)
        if self.deadline is None:
            del value["deadline"]  # so that a bulk worker of an earlier version can read it
        return {"version": SPEC_VERSION, **value, "recipe": self.recipe.describe()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """SpecError for what `to_json` does not write."""
        rest = dict(value)
        if rest.pop("version", None) != SPEC_VERSION:
            raise SpecError(f"a run described in version {value.get('version')!r}: this tokenmill reads {SPEC_VERSION}")
        try:
            source = InputSpec(**rest.pop("input"))
            return cls(
                input=InputSpec(paths=tuple(source.paths), format=source.format),
                recipe=Recipe(**rest.pop("recipe")),
                queue=QueueSpec(**rest.pop("queue")),
                **rest,
            )
        except (KeyError, TypeError) as error:
            raise SpecError(f"no description of a run: {error}") from error
