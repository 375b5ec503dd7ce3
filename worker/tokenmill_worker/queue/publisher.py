"""The thread that tells the server what was generated: coalesced deltas, then the last word with its ack.

The engine's thread only appends to a list here. Knows no lanes, no claims and no Redis command.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, TypeVar

from tokenmill.wire.errors import FencedError
from tokenmill.wire.messages import ErrorInfo
from tokenmill.wire.store import Finish, FinishReply, Held, Publication, PublishReply, RetryReply

from tokenmill_worker.engine.api import TokenEvent
from tokenmill_worker.queue.admission import Admission, Tenure, ToldChoice
from tokenmill_worker.queue.holdings import Holdings
from tokenmill_worker.queue.isolation import BROKEN, is_broken
from tokenmill_worker.queue.outage import ANSWER_TIMEOUT_S, OUTAGE, Backoff
from tokenmill_worker.queue.outbox import Ending, Outbox, Rejected, Spell
from tokenmill_worker.queue.recent import MOST_FAILURES, Failure, RecentTimes
from tokenmill_worker.queue.service import Service

FLUSH_INTERVAL_S = 0.05  # readers see no difference to less, the server and this process do
MAX_SHARE = 0.04  # of the time for telling: a model may want the same cores. To keep to it, the next flush waits ...
MAX_STRETCH = 1.7  # ... but for no more than so many intervals, which bounds how late a cancel is heard
REST_S = 0.01  # more would go out together after a longer rest, and the reader's calls would wait behind all of it

Box = TypeVar("Box", bound="Outbox | Rejected")
Reply = TypeVar("Reply")
_Trouble = tuple[Outbox | Rejected, Exception]

log = logging.getLogger(__name__)


class Receipt(NamedTuple):
    """The server's answers, in the order of what was sent, and the ids it wants this worker to cancel.

    An error in place of an answer is about that one request, or an OUTAGE.
    """

    published: Sequence[PublishReply | Exception]
    finished: Sequence[FinishReply | Exception]
    retried: Sequence[RetryReply | Exception]
    cancelled: Sequence[str]


class Post(Protocol):
    """One pipeline to the server, so one round trip; may raise an OUTAGE, and sending again is always safe."""

    def send(
        self,
        worker: str,
        publications: Sequence[Publication],
        finishes: Sequence[Finish],
        retries: Sequence[Held] = (),
        *,
        wants_cancels: bool = True,
    ) -> Receipt: ...

    def condemn(self, tenure: Tenure, error: Exception) -> bool:
        """End a request that the server cannot deal with otherwise, because of `error`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PublisherStatistics:
    """Totals only grow; `num_open` and `num_unpublished` tokens are of the last flush.

    `first_token_p50_ms` and `p95`, from acceptance, over the last minute. `recent_failures`: the newest last.
    """

    num_open: int = 0
    num_unpublished: int = 0
    num_ended: int = 0
    num_retried: int = 0
    num_failed: int = 0
    first_token_p50_ms: float | None = None
    first_token_p95_ms: float | None = None
    recent_failures: tuple[Failure, ...] = ()
    num_writes_fenced: int = 0


class _Outgoing(NamedTuple):
    """What a flush has to say of which requests. `is_growing`: of one at least more is to come."""

    due: list[Outbox]
    ended: list[Outbox | Rejected]
    failed: list[Outbox]
    is_growing: bool


def _sorted(boxes: Iterable[Outbox | Rejected], now_s: float, *, is_last: bool) -> _Outgoing:
    due: list[Outbox] = []
    ended: list[Outbox | Rejected] = []
    failed: list[Outbox] = []
    is_growing = False
    for box in boxes:
        if isinstance(box, Outbox):
            if box.wants_retry:
                failed.append(box)
            if not box.is_complete:
                is_growing = True
                if box.is_due(now_s) or (is_last and box.num_unpublished):
                    due.append(box)
        if box.is_complete and not box.wants_retry:
            ended.append(box)
    return _Outgoing(due, ended, failed, is_growing)


class Publisher(Service):
    """`open`, `publish` and `reject` may be called from any thread and never wait for the server.

    While the server is away everything is kept and sent later. Only being fenced, as `holdings` says, ends that.
    `on_end`: told, on this thread, of each request whose last word the server has.
    """

    def __init__(
        self,
        post: Post,
        holdings: Holdings,
        *,
        now_ms: Callable[[], float],
        settle_timeout_s: float,
        flush_interval_s: float = FLUSH_INTERVAL_S,
        first_tokens: RecentTimes | None = None,
        on_end: Sequence[Callable[[Ending], None]] = (),
        spell: Spell = lambda token_id: "",
    ) -> None:
        """`first_tokens`: where their times go, when that is shared with other publishers. `spell`: what a token adds
        to a text, told with its logprob.
        """
        super().__init__("publisher", stop_timeout_s=settle_timeout_s + ANSWER_TIMEOUT_S)
        self._post = post
        self._holdings = holdings
        self._now_ms = now_ms
        self._on_end = on_end
        self._settle_timeout_s = settle_timeout_s
        self._flush_interval_s = flush_interval_s
        self._lock = threading.RLock()
        self._news = threading.Condition(self._lock)  # entered by its lock, which costs less
        self._inbox: list[Admission | Rejected | TokenEvent] = []  # guarded by _lock, as are the next two
        self._is_urgent = False
        self._is_unaware = False  # asleep until there is anything at all in the inbox
        self._outboxes: dict[str, Outbox | Rejected] = {}  # the thread's own, as is all that follows
        self._next_flush_s = self._rested_s = 0.0
        self._backoff = Backoff()
        self._num_ended = self._num_retried = self._num_failed = self._num_writes_fenced = 0
        self._spell = spell
        self._first_tokens = first_tokens or RecentTimes()
        self._failures: deque[Failure] = deque(maxlen=MOST_FAILURES)
        self._statistics = PublisherStatistics()

    def open(self, admission: Admission) -> None:
        """Before the first event of an admitted request. The next `publish` wakes the thread, not this: it would take
        the interpreter from the step that comes between.
        """
        with self._lock:
            self._inbox.append(admission)

    def publish(self, events: Sequence[TokenEvent], *, is_idle: bool = False) -> None:
        """After every step. A request's first token goes out at once, others within the flush interval or, while
        telling takes much of the time, within almost twice that. `is_idle`: nothing runs any more, nothing is awaited.
        """
        if events or (self._inbox and self._is_unaware):
            self._put(events, is_urgent=is_idle or _has_first(events))

    def reject(self, tenure: Tenure, *, code: str, message: str, told: Sequence[ToldChoice] = ()) -> None:
        """The last word about a request that cannot run, or not on from what earlier workers told."""
        error = ErrorInfo(code=code, message=message)
        self._put([Rejected(tenure, error, told=told, now_ms=self._now_ms())], is_urgent=True)

    def statistics(self) -> PublisherStatistics:
        p50_ms, p95_ms = self._first_tokens.percentiles(now_s=time.monotonic())
        return replace(self._statistics, first_token_p50_ms=p50_ms, first_token_p95_ms=p95_ms)

    def _put(self, news: Sequence[Admission | Rejected | TokenEvent], *, is_urgent: bool) -> None:
        with self._lock:
            self._inbox.extend(news)
            self._is_urgent |= is_urgent
            if is_urgent or self._is_unaware:
                self._is_unaware = False
                self._news.notify()

    # The thread

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wait_until_due()
            self._flush()
        self._settle()

    def _settle(self) -> None:
        """Write down all there is, due or not: whoever continues these requests need not compute it again."""
        give_up_s = time.monotonic() + self._settle_timeout_s
        self._flush(is_last=True)
        while self._is_unsettled() and time.monotonic() < give_up_s:
            time.sleep(FLUSH_INTERVAL_S)
            self._flush(is_last=True)

    def _is_unsettled(self) -> bool:
        return any(box.is_complete or box.num_unpublished for box in self._outboxes.values())

    def _wake(self) -> None:
        with self._lock:
            self._news.notify()

    def _wait_until_due(self) -> None:
        """Until there is anything at all to do, and then until the next flush, unless somebody waits for it.

        Under load somebody always does: then it rests as long as the last flush took, REST_S at most, so that more goes
        out together.
        """
        with self._lock:
            if not self._outboxes:
                self._is_unaware = not self._inbox
                self._news.wait_for(lambda: self._inbox or self._stopping.is_set())
            pause_s = 0.0 if self._is_urgent else self._next_flush_s - time.monotonic()
            if pause_s > 0:
                self._news.wait_for(lambda: self._is_urgent or self._stopping.is_set(), timeout=pause_s)
            rest_s = self._rested_s - time.monotonic()
            if rest_s > 0:
                self._news.wait_for(self._stopping.is_set, timeout=rest_s)
            self._is_urgent = False

    def _flush(self, *, is_last: bool = False) -> None:
        started_s = time.monotonic()
        self._sort_inbox()
        self._forget_fenced()
        try:
            self._send(is_last=is_last)
            self._backoff.reset()
        except OUTAGE as error:
            log.warning("publishing waits for the server: %s", error)
            self._backoff.wait(self._stopping)
        except BROKEN as error:  # not one request's fault, or it would have been told so
            log.error("publishing fails: %s", error)
            self._backoff.wait(self._stopping)
        ended_s = time.monotonic()
        self._rested_s = ended_s + min(ended_s - started_s, REST_S)
        self._next_flush_s = started_s + cycle_s(ended_s - started_s, self._flush_interval_s)
        self._count()

    def _sort_inbox(self) -> None:
        with self._lock:
            inbox, self._inbox = self._inbox, []
        now_ms, now_s = self._now_ms(), time.monotonic()
        for news in inbox:
            if isinstance(news, Admission):
                self._outboxes[news.tenure.request_id] = Outbox(news, now_s=now_s, spell=self._spell)
            elif isinstance(news, Rejected):
                self._outboxes[news.tenure.request_id] = news
            elif isinstance(outbox := self._outboxes.get(news.request_id), Outbox):  # else it was fenced meanwhile
                first_token_ms = outbox.add(news, now_ms=now_ms)
                if first_token_ms is not None:
                    self._first_tokens.add(first_token_ms, now_s=now_s)

    def _forget_fenced(self) -> None:
        for request_id, box in list(self._outboxes.items()):
            if not self._holdings.holds(box.tenure):
                del self._outboxes[request_id]

    def _count(self) -> None:
        boxes = self._outboxes.values()
        self._statistics = PublisherStatistics(
            num_open=len(boxes),
            num_unpublished=sum(box.num_unpublished for box in boxes),
            num_ended=self._num_ended,
            num_retried=self._num_retried,
            num_failed=self._num_failed,
            recent_failures=tuple(self._failures),
            num_writes_fenced=self._num_writes_fenced,
        )

    # To the server and back

    def _send(self, *, is_last: bool) -> None:
        """Also when nothing is due: while something runs, its cancellation must be heard of soon."""
        boxes = list(self._outboxes.values())
        workers = {box.tenure.worker for box in boxes}  # two at most: before and after a lost lease
        for worker in workers:
            own = boxes if len(workers) == 1 else [box for box in boxes if box.tenure.worker == worker]
            self._send_as(worker, own, is_last=is_last)

    def _send_as(self, worker: str, boxes: Sequence[Outbox | Rejected], *, is_last: bool) -> None:
        out = _sorted(boxes, time.monotonic(), is_last=is_last)
        if out.ended:
            self._holdings.part()
        receipt = self._post.send(
            worker,
            [box.publication() for box in out.due],
            [box.finish() for box in out.ended],
            [Held(box.tenure.request_id, box.tenure.fence) for box in out.failed],
            wants_cancels=out.is_growing,  # else nothing runs that could be cancelled
        )
        if receipt.cancelled:
            self._holdings.cancel(receipt.cancelled)
        troubles = [
            *self._take(zip(out.due, receipt.published, strict=True), self._take_publish_reply),
            *self._take(zip(out.ended, receipt.finished, strict=True), self._take_finish_reply),
            *self._take(zip(out.failed, receipt.retried, strict=True), self._take_retry_reply),
        ]
        self._face(troubles)

    def _take(
        self, replies: Iterable[tuple[Box, Reply | Exception]], take_reply: Callable[[Box, Reply], None]
    ) -> list[_Trouble]:
        """Every reply there is; the errors among them are left over: one must not hide what others were told."""
        troubles: list[_Trouble] = []
        for box, reply in replies:
            if isinstance(reply, Exception):
                troubles.append((box, reply))
            else:
                take_reply(box, reply)
        return troubles

    def _face(self, troubles: Sequence[_Trouble]) -> None:
        """What will never work is ended here; what may work later is raised as the outage that it is."""
        for box, error in troubles:
            if is_broken(error):
                self._condemn(box, error)
        for _, error in troubles:
            if not is_broken(error):
                raise error

    def _take_publish_reply(self, box: Outbox, reply: PublishReply) -> None:
        if reply.status == "fenced":
            self._fence(box)
            return
        self._acknowledge(box, reply.published)
        if reply.is_cancelled:
            self._holdings.cancel([box.tenure.request_id])

    def _take_finish_reply(self, box: Outbox | Rejected, reply: FinishReply) -> None:
        if reply.status == "ok":
            self._let_go(box)
            self._num_ended += 1
            self._note_failure(box)
            for tell in self._on_end:
                tell(box.ending())
        elif reply.status == "gap" and isinstance(box, Outbox):
            self._acknowledge(box, reply.published)  # cut or resent with the next flush
        else:
            self._fence(box)

    def _note_failure(self, box: Outbox | Rejected) -> None:
        if box.error_code is not None:
            self._num_failed += 1
            self._failures.append(Failure(int(self._now_ms()), box.tenure.request_id, box.error_code))

    def _take_retry_reply(self, box: Outbox, reply: str) -> None:
        if reply == "ok":
            self._let_go(box)
            self._num_retried += 1
        elif reply == "exhausted":
            box.exhaust()  # its error goes out with the next flush
        else:
            self._fence(box)

    def _let_go(self, box: Outbox | Rejected) -> None:
        del self._outboxes[box.tenure.request_id]
        self._holdings.let_go(box.tenure)

    def _condemn(self, box: Outbox | Rejected, error: Exception) -> None:
        log.error("request %s cannot go on: %s", box.tenure.request_id, error)
        self._post.condemn(box.tenure, error)
        del self._outboxes[box.tenure.request_id]
        self._holdings.fence(box.tenure)

    def _acknowledge(self, box: Outbox, num_published: int) -> None:
        try:
            box.acknowledge(num_published, now_s=time.monotonic())
        except FencedError as error:
            log.error("%s", error)
            self._fence(box)

    def _fence(self, box: Outbox | Rejected) -> None:
        """It belongs to somebody else now: the loop drops it from the engine at its next step."""
        log.warning("request %s was taken over by another worker", box.tenure.request_id)
        self._num_writes_fenced += 1
        del self._outboxes[box.tenure.request_id]
        self._holdings.fence(box.tenure)


def cycle_s(flush_s: float, interval_s: float) -> float:
    """From the start of a flush that took `flush_s` to the next one's."""
    return max(flush_s + interval_s, min(flush_s / MAX_SHARE, MAX_STRETCH * interval_s))


def _has_first(events: Sequence[TokenEvent]) -> bool:
    """Is one of them a request's first token?"""
    for event in events:  # noqa: SIM110  # a generator's frame for each would cost as much again
        if event.offset == 0 and event.token_ids:
            return True
    return False
