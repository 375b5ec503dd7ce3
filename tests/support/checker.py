"""The offline checker: does a history hold the invariants I1 to I9 of the protocol? Pure; knows no server."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from tokenmill.wire import keys
from tokenmill.wire.errors import DecodeError
from tokenmill.wire.messages import (
    FINAL_STATES,
    DeltaEntry,
    ResetEntry,
    TerminalEntry,
    decode_entry,
    split_stream_id,
    stream_id,
)

from tests.support.history import Expected, History, Reading, Said, Told

MAX_CRASHED = keys.MAX_CRASHES
MAX_FAILED, MAX_ALONE = getattr(keys, "MAX_RETRIES", 3), getattr(keys, "MAX_ALONE_CRASHES", 2)


class Violation(NamedTuple):
    invariant: str
    subject: str
    what: str


Found = Iterator[tuple[str, str]]  # (subject, what is wrong)


def check(history: History) -> list[Violation]:
    """Every violation, by invariant; none: the run was good."""
    return [Violation(invariant, subject, what) for invariant, rule in RULES.items() for subject, what in rule(history)]


def one_final_word(history: History) -> Found:
    """I1: one terminal entry per accepted id."""
    for request_id in history.accepted:
        num_words = sum(_is_terminal(entry) for entry in _entries(history, request_id))
        if num_words != 1:
            yield request_id, f"{num_words} terminal entries"
        job = history.jobs.get(request_id)
        state = job.fields.get("state", "") if job else "gone"
        if state not in FINAL_STATES:
            yield request_id, f"its job is {state}"


def contiguous_and_never_contradicted(history: History) -> Found:
    """I2: deltas join; what any reader saw is what the stream says, entry by entry."""
    for request_id, stream in history.streams.items():
        yield from ((request_id, fault) for fault in _gaps(stream.entries))
    for reading in history.readings:
        stream = history.streams.get(reading.request_id, Reading("", reading.request_id, ()))
        if reading.entries != stream.entries[: len(reading.entries)]:
            yield reading.request_id, f"reader {reading.reader} saw what the stream does not say"
    for answer in history.answers:
        entries = _entries(history, answer.request_id)
        deltas = tuple(entry.entry_id for entry in entries if entry.fields["type"] == "delta")
        texts = [entry.fields["text"] for entry in entries if _is_terminal(entry)]
        if answer.entry_ids != deltas or [answer.text] != texts[:1]:
            yield answer.request_id, f"client {answer.reader} was given something else than the stream says"


def _gaps(entries: Sequence[Told]) -> Iterator[str]:
    """Where an entry does not begin at the end of the one before, or its id is not its offset."""
    epoch, end = 0, 0
    for told in entries:
        try:
            entry = decode_entry(told.entry_id, _encoded(told.fields))
        except DecodeError as error:
            yield str(error)
            return
        if isinstance(entry, ResetEntry):
            epoch, end = split_stream_id(told.entry_id)[0], 0
            continue
        if isinstance(entry, DeltaEntry):
            if entry.offset != end:
                yield f"a delta starts at {entry.offset}, where {end} tokens are told"
            end = entry.end
        if told.entry_id != stream_id(epoch, end, terminal=isinstance(entry, TerminalEntry)):
            yield f"entry {told.entry_id} stands where {end} tokens of epoch {epoch} are told"


def final_word_is_last(history: History) -> Found:
    """I3: nothing follows the terminal entry."""
    for request_id, stream in history.streams.items():
        if any(_is_terminal(entry) for entry in stream.entries[:-1]):
            yield request_id, "something follows a terminal entry"


def nothing_is_left(history: History) -> Found:
    """I4: at rest nothing waits, is pending or registered, and what stays has a TTL."""
    for name, count in history.rest.waiting.items():
        if count:
            yield name, f"holds {count} at rest"
    for name in history.rest.without_ttl:
        yield name, "lives for ever"


def no_write_by_the_fenced(history: History) -> Found:
    """I5: once a later owner began at some offset, nothing that an earlier one sends goes beyond it."""
    tenures = defaultdict(list)
    for tenure in history.tenures:
        tenures[tenure.request_id].append(tenure)
    for writes in history.writes:
        held = tenures[writes.request_id]
        own = max((tenure.fence for tenure in held if tenure.worker == writes.worker), default=None)
        if own is None:
            continue  # its begin was answered while nobody listened
        for later in (tenure for tenure in held if tenure.fence > own):
            if writes.has_finished or (later.epoch == 0 and writes.published > later.published):
                yield writes.request_id, f"{writes.worker} wrote at fence {own} after {later.worker} began"


def attempts_are_bounded(history: History) -> Found:
    """I6: no counter beyond its limit, and no more tenures without progress than the counters allow."""
    stuck: dict[str, int] = defaultdict(int)
    last: dict[str, int] = {}
    for tenure in sorted(history.tenures, key=lambda tenure: (tenure.request_id, tenure.fence)):
        stuck[tenure.request_id] += last.get(tenure.request_id) == tenure.published
        last[tenure.request_id] = tenure.published
    for request_id, job in history.jobs.items():
        count = {name: int(job.fields.get(name) or 0) for name in ("handed_back", "failed", "crashed", "alone")}
        limits = {"failed": MAX_FAILED, "alone": MAX_ALONE}
        yield from ((request_id, f"{name} {count[name]} times") for name, most in limits.items() if count[name] > most)
        if stuck[request_id] > MAX_CRASHED + MAX_ALONE + MAX_FAILED + count["handed_back"]:
            yield request_id, f"begun {stuck[request_id] + 1} times without a token of progress"


def output_is_uninterrupted(history: History) -> Found:
    """I7: every answer equals that of an engine that nothing happened to; a partial one is its beginning."""
    for request_id, expected in history.expected.items():
        words = [entry for entry in _entries(history, request_id) if _is_terminal(entry)]
        if len(words) == 1:
            yield from ((request_id, fault) for fault in _difference(history, expected, words[0]))


def _difference(history: History, expected: Expected, word: Told) -> Iterator[str]:
    kind = word.fields["type"]
    terminal = decode_entry(word.entry_id, _encoded(word.fields))
    assert isinstance(terminal, TerminalEntry)
    accepted = history.accepted[expected.request_id]
    is_allowed = {
        "done": expected.error is None,
        "cancelled": expected.request_id in history.cancelled,
        "expired": accepted.has_deadline,
        "error": terminal.error is not None and terminal.error.code == expected.error,
    }
    if not is_allowed[kind]:
        yield f"ended as {kind}, which nobody asked for: {terminal.error}"
    elif kind == "done":
        if _choices(history, terminal, expected.request_id, len(expected.choices)) != expected.choices:
            yield "is not what an undisturbed engine says"
        if terminal.usage.completion_tokens != sum(len(choice.token_ids) for choice in expected.choices):
            yield f"counts {terminal.usage.completion_tokens} tokens"
    elif expected.choices:
        told_choices = _choices(history, terminal, expected.request_id, len(expected.choices))
        for partial, whole in zip(told_choices, expected.choices, strict=True):
            if not _is_beginning(partial, whole):
                yield f"was {kind} with something that is no beginning of what it would have said"


def _choices(history: History, terminal: TerminalEntry, request_id: str, num_choices: int) -> tuple[Said, ...]:
    """Tokens from the deltas since the last reset, texts and reasons from the final word."""
    token_ids: dict[int, list[int]] = defaultdict(list)
    for told in _entries(history, request_id):
        entry = decode_entry(told.entry_id, _encoded(told.fields))
        if isinstance(entry, ResetEntry):
            token_ids.clear()
        elif isinstance(entry, DeltaEntry):
            token_ids[entry.index] += entry.token_ids
    texts = {0: (terminal.text, terminal.finish_reason)}
    for choice in terminal.choices or ():
        texts[choice.index] = (choice.text, choice.finish_reason or terminal.finish_reason)
    return tuple(
        Said(tuple(token_ids[index]), *texts.get(index, ("", terminal.finish_reason))) for index in range(num_choices)
    )


def _is_beginning(partial: Said, whole: Said) -> bool:
    """The echo model's tokens are bytes; a character that was cut shows as U+FFFD."""
    if partial.token_ids != whole.token_ids[: len(partial.token_ids)]:
        return False
    return (
        bytes(partial.token_ids).decode("utf-8", "replace").startswith(partial.text.rstrip("\N{REPLACEMENT CHARACTER}"))
    )


def little_is_computed_again(history: History) -> Found:
    """I8: tokens drawn and never told <= owners lost x rows in flight x (flush window + held back)."""
    effort = history.effort
    num_told = sum(int(job.fields.get("published") or 0) for job in history.jobs.values())
    num_again = effort.num_computed - num_told
    most = effort.num_losses * effort.num_rows * effort.window + effort.num_aside
    if num_again > most:
        yield "all requests", f"{num_again} tokens were computed again, at most {most} may be"


def no_innocent_is_dead_lettered(history: History) -> Found:
    """I9: dead letters, and jobs given up, are of the guilty only."""
    for letter in history.dead_letters:
        request_id = letter.fields.get("id", "")
        if request_id not in history.guilty:
            yield request_id, f"is dead-lettered: {letter.fields.get('reason')}"
    for request_id, job in history.jobs.items():
        if job.fields.get("state") == "dead" and request_id not in history.guilty:
            yield request_id, "was given up"


RULES: dict[str, Callable[[History], Found]] = {
    "I1": one_final_word,
    "I2": contiguous_and_never_contradicted,
    "I3": final_word_is_last,
    "I4": nothing_is_left,
    "I5": no_write_by_the_fenced,
    "I6": attempts_are_bounded,
    "I7": output_is_uninterrupted,
    "I8": little_is_computed_again,
    "I9": no_innocent_is_dead_lettered,
}


def _entries(history: History, request_id: str) -> tuple[Told, ...]:
    stream = history.streams.get(request_id)
    return stream.entries if stream else ()


def _is_terminal(entry: Told) -> bool:
    return entry.fields["type"] not in ("delta", "reset")


def _encoded(fields: Mapping[str, str]) -> dict[bytes, bytes]:
    return {name.encode(): value.encode() for name, value in fields.items()}
