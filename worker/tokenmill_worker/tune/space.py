"""What may be set, and which combinations are worth a look. Pure; knows no engine."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

ROWS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
ROWS_OF_A_GPU = (1, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
BATCHED_TOKENS = (64, 128, 256, 512, 1024, 2048)
TOKENS_OF_A_GPU = (256, 512, 1024, 2048, 4096, 8192)
INTERVALS = (1, 2, 4, 8, 16)
USUAL_TOKENS, USUAL_INTERVAL = 512, 1  # the settings' own defaults
ROOM_FOR_PREFILL = 2  # tokens of a step for each row: with fewer, a full batch leaves newcomers next to nothing


@dataclass(frozen=True, slots=True)
class Point:
    """One combination of the settings that are tuned, under their names in WorkerSettings.

    `num_threads` None: not a matter of this device.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    scheduling_interval: int
    num_threads: int | None = None

    def __str__(self) -> str:
        interval = f", every {self.scheduling_interval} steps" if self.scheduling_interval > 1 else ""
        threads = f", {self.num_threads} thread{'s' * (self.num_threads > 1)}" if self.num_threads else ""
        return f"{self.max_num_seqs} rows, {self.max_num_batched_tokens} tokens{interval}{threads}"


@dataclass(frozen=True, slots=True)
class Space:
    """`num_threads`: the most first, since that is what a machine with nothing else to do wants."""

    max_num_seqs: Sequence[int] = ROWS
    max_num_batched_tokens: Sequence[int] = BATCHED_TOKENS
    scheduling_interval: Sequence[int] = INTERVALS
    num_threads: Sequence[int | None] = (None,)

    def usual(self, max_num_seqs: int) -> Point:
        """These rows with everything else as it is by default."""
        fitting = [tokens for tokens in self.max_num_batched_tokens if tokens >= ROOM_FOR_PREFILL * max_num_seqs] or [
            max(self.max_num_batched_tokens)
        ]
        tokens = min(fitting, key=lambda tokens: abs(tokens - USUAL_TOKENS))
        interval = min(self.scheduling_interval, key=lambda interval: abs(interval - USUAL_INTERVAL))
        return Point(max_num_seqs, tokens, interval, self.num_threads[0])

    def grid(self, rows: Iterable[int] | None = None) -> Iterator[Point]:
        """Every combination with room for prefill, of these rows or of all."""
        chosen = self.max_num_seqs if rows is None else tuple(rows)
        columns = (chosen, self.max_num_batched_tokens, self.scheduling_interval, self.num_threads)
        points = (Point(*values) for values in product(*columns))
        return (point for point in points if point.max_num_batched_tokens >= ROOM_FOR_PREFILL * point.max_num_seqs)

    def around(self, rows: Sequence[int], *, num: int) -> list[Point]:
        """At most `num` points, those first that differ least from the usual one of their rows.

        `rows`: the most promising first. Fewer threads are tried with those alone: how much slower one core is than two
        does not depend on the rows.
        """
        usual = self.num_threads[0]
        points = [point for point in self.grid(rows) if point.num_threads == usual or point.max_num_seqs == rows[0]]
        return sorted(points, key=lambda point: (self.distance(point), rows.index(point.max_num_seqs)))[:num]

    def distance(self, point: Point) -> int:
        """Steps from the usual point of these rows, along all settings together."""
        usual = self.usual(point.max_num_seqs)
        return (
            _steps(self.max_num_batched_tokens, point.max_num_batched_tokens, usual.max_num_batched_tokens)
            + _steps(self.scheduling_interval, point.scheduling_interval, usual.scheduling_interval)
            + _steps(self.num_threads, point.num_threads, usual.num_threads)
        )

    def within(self, *, most_rows: int) -> "Space":
        """Without rows that the model's KV pool cannot hold."""
        return replace(self, max_num_seqs=[rows for rows in self.max_num_seqs if rows <= most_rows] or [most_rows])


def _steps(values: Sequence[int | None], one: int | None, other: int | None) -> int:
    return abs(values.index(one) - values.index(other))


def space_of(device: str, *, num_cores: int) -> Space:
    """`device` as torch names it. On a CPU, all cores and one fewer: what a neighbour that never rests leaves us."""
    if device != "cpu":
        return Space(ROWS_OF_A_GPU, TOKENS_OF_A_GPU)
    return Space(num_threads=(num_cores, num_cores - 1) if num_cores > 1 else (1,))
