"""The thread that tells the server what was generated: coalesced deltas, then the last word with its ack.

The engine's thread only appends to a list here. Knows no lanes, no claims and no Redis command.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from tokenmill.wire.errors import FencedError
from tokenmill.wire.messages import ErrorInfo
from tokenmill.wire.store import Finish, FinishReply, Publication, PublishReply

from tokenmill_worker.engine.api import TokenEvent
from tokenmill_worker.queue.admission import Admission, Tenure
from tokenmill_worker.queue.holdings import Holdings
from tokenmill_worker.queue.outage import ANSWER_TIMEOUT_S, OUTAGE, Backoff
from tokenmill_worker.queue.outbox import Outbox, Rejected
from tokenmill_worker.queue.service import Service

FLUSH_INTERVAL_S = 0.05  # readers see no difference to less, the server and this process do

log = logging.getLogger(__name__)


class Receipt(NamedTuple):
    """The server's answers, in the order of what was sent, and the ids it wants this worker to cancel."""

    published: Sequence[PublishReply]
    finished: Sequence[FinishReply]
    cancelled: Sequence[str]


class Post(Protocol):
    """One pipeline to the server, so one round trip; may raise an OUTAGE, and sending again is always safe."""

    def send(self, worker: str, publications: Sequence[Publication], finishes: Sequence[Finish]) -> Receipt: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PublisherStatistics:
    """Totals only grow; `num_open` and `num_unpublished` tokens are of the last flush."""

    num_open: int = 0
    num_unpublished: int = 0
    num_ended: int = 0


class Publisher(Service):
    """`open`, `publish` and `reject` may be called from any thread and never wait for the server.

    While the server is away everything is kept and sent later. Only being fenced, as `holdings` says, ends that.
    """

    def __init__(self, post: Post, holdings: Holdings, *, now_ms: Callable[[], float], settle_timeout_s: float) -> None:
        super().__init__("publisher", stop_timeout_s=settle_timeout_s + ANSWER_TIMEOUT_S)
        self._post = post
        self._holdings = holdings
        self._now_ms = now_ms
        self._settle_timeout_s = settle_timeout_s
        self._news = threading.Condition()
        self._inbox: list[Admission | Rejected | TokenEvent] = []  # guarded by _news, as is the next
        self._is_urgent = False
        self._outboxes: dict[str, Outbox | Rejected] = {}  # the thread's own, as is all that follows
        self._next_flush_s = self._rested_s = 0.0
        self._backoff = Backoff()
        self._num_ended = 0
        self._statistics = PublisherStatistics()

    def open(self, admission: Admission) -> None:
        """Before the first event of an admitted request."""
        self._put([admission], is_urgent=False)

    def publish(self, events: Sequence[TokenEvent]) -> None:
        """A request's first token goes out at once, others within FLUSH_INTERVAL_S."""
        if events:
            self._put(events, is_urgent=any(event.offset == 0 and event.token_ids for event in events))

    def reject(self, tenure: Tenure, *, code: str, message: str) -> None:
        """The one and only word about a request that cannot run."""
        error = ErrorInfo(code=code, message=message)
        self._put([Rejected(tenure, error, now_ms=self._now_ms())], is_urgent=True)

    def statistics(self) -> PublisherStatistics:
        return self._statistics

    def _put(self, news: Sequence[Admission | Rejected | TokenEvent], *, is_urgent: bool) -> None:
        with self._news:
            was_empty = not self._inbox
            self._inbox.extend(news)
            self._is_urgent |= is_urgent
            if was_empty or is_urgent:
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
        with self._news:
            self._news.notify()

    def _wait_until_due(self) -> None:
        """Until there is anything at all to do, and then until the next flush, unless somebody waits for it.

        Under load somebody always does: then it rests as long as the last flush took, so that more goes out together.
        """
        with self._news:
            if not self._outboxes:
                self._news.wait_for(lambda: self._inbox or self._stopping.is_set())
            pause_s = max(0.0, self._next_flush_s - time.monotonic())
            self._news.wait_for(lambda: self._is_urgent or self._stopping.is_set(), timeout=pause_s)
            rest_s = max(0.0, self._rested_s - time.monotonic())
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
        ended_s = time.monotonic()
        self._rested_s = ended_s + min(ended_s - started_s, FLUSH_INTERVAL_S)
        self._next_flush_s = ended_s + FLUSH_INTERVAL_S
        self._count()

    def _sort_inbox(self) -> None:
        with self._news:
            inbox, self._inbox = self._inbox, []
        now_ms, now_s = self._now_ms(), time.monotonic()
        for news in inbox:
            if isinstance(news, Admission):
                self._outboxes[news.tenure.request_id] = Outbox(news, now_s=now_s)
            elif isinstance(news, Rejected):
                self._outboxes[news.tenure.request_id] = news
            elif isinstance(outbox := self._outboxes.get(news.request_id), Outbox):
                outbox.add(news, now_ms=now_ms)  # without an outbox, the request was fenced meanwhile

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
        )

    # To the server and back

    def _send(self, *, is_last: bool) -> None:
        """Also when nothing is due: while something runs, its cancellation must be heard of soon."""
        boxes = list(self._outboxes.values())
        for worker in {box.tenure.worker for box in boxes}:  # two at most: before and after a lost lease
            self._send_as(worker, [box for box in boxes if box.tenure.worker == worker], is_last=is_last)

    def _send_as(self, worker: str, boxes: Sequence[Outbox | Rejected], *, is_last: bool) -> None:
        now_s = time.monotonic()
        complete = [box for box in boxes if box.is_complete]
        growing = [box for box in boxes if isinstance(box, Outbox) and not box.is_complete]
        due = [box for box in growing if box.is_due(now_s) or (is_last and box.num_unpublished)]
        receipt = self._post.send(worker, [box.publication() for box in due], [box.finish() for box in complete])
        for box, published in zip(due, receipt.published, strict=True):
            self._take_publish_reply(box, published)
        for finished_box, finished in zip(complete, receipt.finished, strict=True):
            self._take_finish_reply(finished_box, finished)
        self._holdings.cancel(receipt.cancelled)

    def _take_publish_reply(self, box: Outbox, reply: PublishReply) -> None:
        if reply.status == "fenced":
            self._fence(box)
            return
        self._acknowledge(box, reply.published)
        if reply.is_cancelled:
            self._holdings.cancel([box.tenure.request_id])

    def _take_finish_reply(self, box: Outbox | Rejected, reply: FinishReply) -> None:
        if reply.status == "ok":
            del self._outboxes[box.tenure.request_id]
            self._holdings.let_go(box.tenure)
            self._num_ended += 1
        elif reply.status == "gap" and isinstance(box, Outbox):
            self._acknowledge(box, reply.published)  # cut or resent with the next flush
        else:
            self._fence(box)

    def _acknowledge(self, box: Outbox, num_published: int) -> None:
        try:
            box.acknowledge(num_published, now_s=time.monotonic())
        except FencedError as error:
            log.error("%s", error)
            self._fence(box)

    def _fence(self, box: Outbox | Rejected) -> None:
        """It belongs to somebody else now: the loop drops it from the engine at its next step."""
        log.warning("request %s was taken over by another worker", box.tenure.request_id)
        del self._outboxes[box.tenure.request_id]
        self._holdings.fence(box.tenure)
