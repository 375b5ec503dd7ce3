"""What the blocking and the asyncio client share: everything of a submission that needs no answer from the server."""

import os
import re
import secrets
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Literal, TypedDict

from tokenmill.follow import Follower, Seats
from tokenmill.partitions import Partitions, Trip
from tokenmill.tracing import current_traceparent
from tokenmill.wire.errors import ConflictError, InvalidRequestError, QueueBusyError
from tokenmill.wire.messages import Priority, SamplingParams, check_request_id
from tokenmill.wire.store import DEFAULT_URL, Submission, SubmitReply, Transitions

URL_VARIABLE = "TOKENMILL_REDIS_URL"
PARTITIONS_VARIABLE = "TOKENMILL_PARTITIONS"

MAX_DELAY_S = 366 * 86_400  # as far as a deadline may be away

ALL_SEATED = 1 << 31  # asyncio clients: one connection reads for everybody, so nobody has to stand

_ID_BYTES = 12  # of a fresh id: among a billion, two are the same with a chance of 10^-11
_QUEUE = re.compile(r"[A-Za-z0-9._-]{1,100}")


class RequestFields(TypedDict, total=False):
    """What `submit` takes beside the prompt; each is explained in the protocol."""

    messages: Sequence[Mapping[str, object]] | None
    id: str | None
    model: str | None
    priority: Priority | None
    deadline_s: float | None
    delay_s: float | None
    group: str | None
    stream: Literal["delta", "final"] | None
    result_ttl_s: int | None
    traceparent: str | None
    on_detach: Literal["continue", "cancel"] | None
    sampling: SamplingParams | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    max_tokens: int | None
    max_completion_tokens: int | None
    min_tokens: int | None
    stop: str | Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    seed: int | None
    ignore_eos: bool | None
    logprobs: int | bool | None
    top_logprobs: int | None
    n: int | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[int, float] | None
    user: str | None


class Core:
    """What both clients share: everything that needs no answer from the server."""

    def __init__(self, url: str | None, queue: str, partitions: int | None) -> None:
        if not _QUEUE.fullmatch(queue):
            raise InvalidRequestError("a queue's name is 1 to 100 characters out of A-Z a-z 0-9 . _ -", param="queue")
        self.url = url or os.environ.get(URL_VARIABLE) or DEFAULT_URL
        self.partitions = Partitions(queue, _given_partitions() if partitions is None else partitions, url=self.url)
        self.keys = self.partitions.transitions[0].keys
        self.seats = Seats()
        self.has_agreed = False

    def transitions(self, partition: int) -> Transitions:
        return self.partitions.transitions[partition]

    def partition(self, request_id: str, given: int | None) -> int:
        """`given`: of a raw entry without an id, which may stand in any."""
        if given is None:
            return self.partitions.of(request_id)
        if not 0 <= given < len(self.partitions.transitions):
            raise InvalidRequestError(f"there is no partition {given} of this queue", param="partition")
        return given

    def follower(
        self,
        request_id: str,
        partition: int,
        after: str | None,
        timeout_s: float | None,
        *,
        is_known: bool,
        wants_deltas: bool,
    ) -> Follower:
        keys, seats = self.transitions(partition).keys, self.seats
        return Follower(
            keys,
            request_id,
            after=after,
            timeout_s=timeout_s,
            is_known=is_known,
            wants_deltas=wants_deltas,
            seats=seats,
        )


def _given_partitions() -> int:
    given = os.environ.get(PARTITIONS_VARIABLE) or "1"
    if not given.isdecimal():
        raise InvalidRequestError(f"{PARTITIONS_VARIABLE}={given!r} is no number", param="partitions")
    return int(given)


def submissions_of(requests: Sequence[Mapping[str, object]]) -> list[Submission]:
    """Each validated, under its own id or a fresh one, and in the caller's trace if there is one."""
    if (trace := current_traceparent()) is not None:
        requests = [{"traceparent": trace, **fields} for fields in requests]
    fresh = secrets.token_bytes(_ID_BYTES * len(requests)).hex()
    width = 2 * _ID_BYTES
    return [_submission(fields, fresh[width * i : width * (i + 1)]) for i, fields in enumerate(requests)]


def _submission(fields: Mapping[str, object], fresh_id: str) -> Submission:
    given = dict(fields)
    request_id, delay_s = given.pop("id", None), given.pop("delay_s", None)
    return Submission.build(
        fresh_id if request_id is None else check_request_id(request_id),
        given,
        not_before_ms=None if delay_s is None else _delay_ms(delay_s),
    )


def _delay_ms(delay_s: object) -> int | None:
    """None: at once."""
    if not isinstance(delay_s, int | float) or isinstance(delay_s, bool) or not 0 <= delay_s <= MAX_DELAY_S:
        raise InvalidRequestError(f"delay_s must be seconds, from 0 to {MAX_DELAY_S}", param="delay_s")
    return round(delay_s * 1000) or None


def replies_of(trip: Trip, replies: Sequence[list[SubmitReply]]) -> dict[int, SubmitReply]:
    """By where the submission stood."""
    return dict(zip(trip.places, chain.from_iterable(replies), strict=True))


def accepted_ids(submissions: Sequence[Submission], replies: Mapping[int, SubmitReply]) -> list[str]:
    for place, submission in enumerate(submissions):
        reply = replies[place]
        if reply.status == "conflict":
            raise ConflictError(submission.request_id)
        if reply.status == "busy":
            raise QueueBusyError(
                f"lane {submission.lane.name.lower()} is full: try again later",
                retry_after_s=(reply.retry_after_ms or 1000) / 1000,
            )
    return [submission.request_id for submission in submissions]
