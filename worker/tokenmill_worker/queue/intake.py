"""From deliveries to admissions: claim, read back, template, tokenize. A bad request gets its final word here.

Runs off the engine's thread. Knows no lanes' order and no buffer.
"""

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple, cast

from redis.exceptions import ResponseError
from tokenmill.wire.errors import DecodeError
from tokenmill.wire.errors import InvalidRequestError as InvalidOnWireError
from tokenmill.wire.messages import RequestDecoder
from tokenmill.wire.store import Attempt, BeginReply, Call, Claim, Delivery, Store, Transitions

from tokenmill_worker.engine.api import InvalidRequestError
from tokenmill_worker.queue.admission import Admission, Tenure, ToldChoice
from tokenmill_worker.queue.burial import burial, claim_of, code_and_message
from tokenmill_worker.queue.clock import ServerClock
from tokenmill_worker.queue.holdings import Holdings
from tokenmill_worker.queue.isolation import CODE, explain, is_broken, spread
from tokenmill_worker.queue.lanes import Lanes
from tokenmill_worker.queue.outage import OUTAGE
from tokenmill_worker.queue.publisher import Publisher
from tokenmill_worker.queue.requests import RequestBuilder
from tokenmill_worker.queue.resume import StreamEntry, told_choices

log = logging.getLogger(__name__)


class Begun(NamedTuple):
    """Claims whose begin was sent."""

    worker: str
    claims: Sequence[Claim]
    attempt: Attempt[list[BeginReply]]


class Intake:
    """`fingerprint` is of the model served here: tokens told under another one are reset, not continued."""

    def __init__(
        self,
        store: Store,
        transitions: Transitions,
        lanes: Lanes,
        *,
        builder: RequestBuilder,
        publisher: Publisher,
        holdings: Holdings,
        clock: ServerClock,
        fingerprint: str,
    ) -> None:
        self._store = store
        self._transitions = transitions
        self._lanes = lanes
        self._builder = builder
        self._publisher = publisher
        self._holdings = holdings
        self._clock = clock
        self._fingerprint = fingerprint
        self._decoder = RequestDecoder()

    def take(self, worker: str, deliveries: Sequence[Delivery]) -> Iterator[Admission]:
        """The good ones among the deliveries, each as soon as it is ready; the others are settled.

        An OUTAGE or FencedError leaves those that were not yielded to the audit: they are pending and not held.
        """
        claims = self._claims(worker, deliveries)
        if claims:
            (outcome,) = self._store.attempt([self._call(worker, claims)])
            yield from self._admissions(worker, claims, outcome)

    def begin(self, worker: str, deliveries: Sequence[Delivery]) -> "Begun | None":
        """The first half of `take`: sent, and not waited for. None: none of them can begin."""
        claims = self._claims(worker, deliveries)
        return Begun(worker, claims, self._store.begin([self._call(worker, claims)])) if claims else None

    def admit(self, begun: "Begun") -> Iterator[Admission]:
        """The second half."""
        (outcome,) = begun.attempt.outcomes()
        yield from self._admissions(begun.worker, begun.claims, outcome)

    def _call(self, worker: str, claims: Sequence[Claim]) -> Call[list[BeginReply]]:
        return self._transitions.begin(worker, claims, fingerprint=self._fingerprint)

    def _admissions(
        self, worker: str, claims: Sequence[Claim], outcome: list[BeginReply] | Exception
    ) -> Iterator[Admission]:
        """An error for a claim is about that one; any other is raised."""
        replies = spread(self._store, partial(self._call, worker), claims, outcome)
        for reply in replies:
            if isinstance(reply, Exception) and not is_broken(reply):
                raise reply
        for claim, reply in zip(claims, replies, strict=True):
            if isinstance(reply, Exception):
                self._condemn(worker, claim, reply)
            elif reply.status == "begun":
                self._clock.hear(reply.begun_ms)
                admission = self._admit(worker, claim, reply)
                if admission is not None:
                    yield admission

    # Before it is ours

    def _claims(self, worker: str, deliveries: Sequence[Delivery]) -> list[Claim]:
        return [claim for delivery in deliveries if (claim := self._claim(worker, delivery)) is not None]

    def _claim(self, worker: str, delivery: Delivery) -> Claim | None:
        if not delivery.fields:
            self._lanes.forget(delivery)
            return None
        try:
            return claim_of(self._transitions.keys, delivery)
        except (DecodeError, InvalidOnWireError) as error:
            log.warning("buried entry %s of lane %s: no request", delivery.entry_id, delivery.lane)
            self._store.run(burial(self._transitions, worker, delivery, error))
            return None

    def _condemn(self, worker: str, claim: Claim, error: Exception, fence: int | None = None) -> None:
        log.error("request %s cannot begin: %s", claim.request_id, error)
        call = self._transitions.condemn(worker, claim, fence=fence, code=CODE, message=explain(error))
        self._store.run(call)

    # Now it is ours: from here on it ends with an admission or with a final word

    def _admit(self, worker: str, claim: Claim, reply: BeginReply) -> Admission | None:
        tenure = _tenure(worker, claim, reply)
        try:  # before we hold anything, so that what an outage leaves behind is found by the audit
            entries = self._read_back(tenure) if reply.published else []
        except ResponseError as error:
            if isinstance(error, OUTAGE):
                raise
            self._condemn(worker, claim, error, reply.fence)
            return None
        self._holdings.hold(tenure)
        return self._prepare(tenure, reply.body, entries)

    def _prepare(self, tenure: Tenure, body: bytes, entries: Sequence[StreamEntry]) -> Admission | None:
        told: tuple[ToldChoice, ...] = ()
        try:
            request, prompt = self._decoder.split(body)
            if entries:
                told = told_choices(entries, num_choices=request.sampling.n or 1)
            return Admission(
                tenure=tenure,
                request=self._builder.build(tenure.request_id, request, told, prompt=prompt),
                is_streaming=request.stream == "delta",
                told=told,
                traceparent=request.traceparent,
            )
        except (DecodeError, InvalidOnWireError) as error:
            self._reject(tenure, told, *code_and_message(error))
        except InvalidRequestError as error:
            self._reject(tenure, told, error.code, str(error))
        except Exception as error:  # a chat template or a tokenizer may raise anything; it costs this request alone
            log.error("request %s cannot be prepared: %s", tenure.request_id, type(error).__name__)
            self._reject(tenure, told, "internal_error", f"{type(error).__name__} while it was prepared")
        return None

    def _read_back(self, tenure: Tenure) -> list[StreamEntry]:
        key = self._transitions.keys.result(tenure.request_id)
        return cast("list[StreamEntry]", self._store.client.xrange(key))

    def _reject(self, tenure: Tenure, told: Sequence[ToldChoice], code: str, message: str) -> None:
        log.info("refused request %s: %s", tenure.request_id, code)
        self._publisher.reject(tenure, code=code, message=message, told=told)


def _tenure(worker: str, claim: Claim, reply: BeginReply) -> Tenure:
    return Tenure(
        worker=worker,
        lane=claim.lane,
        entry_id=claim.entry_id,
        request_id=claim.request_id,
        fence=reply.fence,
        epoch=reply.epoch,
        num_published=reply.published,
        group=reply.group,
        accepted_ms=reply.accepted_ms,
        begun_ms=reply.begun_ms,
        deadline_ms=reply.deadline_ms,
        first_token_ms=reply.first_token_ms,
    )
