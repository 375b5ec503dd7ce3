"""What earlier workers told of a request, read back from its result stream. Pure; knows no server."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tokenmill.wire.messages import DeltaEntry, ResetEntry, decode_entry

from tokenmill_worker.engine.api import FinishReason
from tokenmill_worker.queue.admission import ToldChoice

StreamEntry = tuple[bytes, Mapping[bytes, bytes]]


@dataclass(slots=True)
class _Fold:
    """One choice while its deltas are put together."""

    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def add(self, delta: DeltaEntry) -> None:
        self.texts.append(delta.text)
        self.token_ids += delta.token_ids
        self.finish_reason = delta.finish_reason or self.finish_reason

    def told(self) -> ToldChoice:
        return ToldChoice("".join(self.texts), tuple(self.token_ids), self.finish_reason)


def told_choices(entries: Iterable[StreamEntry], *, num_choices: int) -> tuple[ToldChoice, ...]:
    """One per choice, from the deltas since the last reset. Raises DecodeError for entries that are not ours."""
    folds = [_Fold() for _ in range(num_choices)]
    for entry_id, fields in entries:
        entry = decode_entry(entry_id.decode(), fields)
        if isinstance(entry, ResetEntry):
            folds = [_Fold() for _ in range(num_choices)]
        elif isinstance(entry, DeltaEntry):
            folds[entry.index].add(entry)
    return tuple(fold.told() for fold in folds)
