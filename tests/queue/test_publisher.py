"""The publisher against a post of the test's own: what goes out, when, and what comes of the answers."""

import threading
from collections.abc import Callable, Iterator, Sequence

import pytest
from redis.exceptions import ResponseError
from tokenmill.wire.errors import QueueBusyError, UnavailableError
from tokenmill.wire.store import Finish, FinishReply, Held, Publication, PublishReply, RetryReply
from tokenmill_worker.engine.api import FinishReason, RowError
from tokenmill_worker.queue.admission import Tenure
from tokenmill_worker.queue.holdings import Holdings
from tokenmill_worker.queue.publisher import Publisher, Receipt, cycle_s

from tests.queue.builders import admission, event, tenure
from tests.support.waiting import wait_until


class FakePost:
    """A server that applies what joins what it has. `fail` makes the next sends fail, before or after they apply."""

    def __init__(self) -> None:
        self.published: dict[str, int] = {}
        self.texts: dict[str, str] = {}
        self.finished: list[Finish] = []
        self.num_sent = 0
        self.fenced: set[str] = set()
        self.condemned: list[str] = []
        self.faults: dict[str, Exception] = {}
        self.num_retries_left = 0
        self.cancelled: tuple[str, ...] = ()
        self.num_outages = 0
        self.num_lost_replies = 0
        self.lock = threading.Lock()

    def send(
        self,
        worker: str,
        publications: Sequence[Publication],
        finishes: Sequence[Finish],
        retries: Sequence[Held] = (),
        *,
        wants_cancels: bool = True,
    ) -> Receipt:
        with self.lock:
            if self.num_outages:
                self.num_outages -= 1
                raise UnavailableError("away")
            self.num_sent += bool(publications or finishes)
            receipt = Receipt(
                published=[self._fault(p.request_id) or self._publish(p) for p in publications],
                finished=[self._fault(f.request_id) or self._finish(f) for f in finishes],
                retried=[self._retry(held) for held in retries],
                cancelled=self.cancelled if wants_cancels else (),
            )
            if self.num_lost_replies and (publications or finishes):
                self.num_lost_replies -= 1
                raise UnavailableError("reply lost")
            return receipt

    def condemn(self, tenure: Tenure, error: Exception) -> bool:
        self.condemned.append(tenure.request_id)
        return True

    def _fault(self, request_id: str) -> Exception | None:
        return self.faults.get(request_id)

    def _retry(self, held: Held) -> RetryReply:
        self.num_retries_left -= 1
        return "ok" if self.num_retries_left >= 0 else "exhausted"

    def _publish(self, publication: Publication) -> PublishReply:
        request_id = publication.request_id
        if request_id in self.fenced:
            return PublishReply("fenced")
        for entry in publication.entries:
            told = self.published.get(request_id, 0)
            if entry.end <= told:
                continue
            if entry.offset != told:
                return PublishReply("gap", told)
            self.published[request_id] = entry.end
            self.texts[request_id] = self.texts.get(request_id, "") + entry.text
        return PublishReply("ok", self.published.get(request_id, 0))

    def _finish(self, finish: Finish) -> FinishReply:
        if finish.request_id in self.fenced:
            return FinishReply("fenced")
        if finish.request_id in {done.request_id for done in self.finished}:
            return FinishReply("ok", self.published.get(finish.request_id, 0))
        reply = self._publish(Publication(finish.request_id, finish.fence, finish.epoch, finish.deltas))
        if reply.status == "ok":
            self.finished.append(finish)
        return FinishReply("ok" if reply.status == "ok" else "gap", reply.published)


@pytest.fixture
def post() -> FakePost:
    return FakePost()


@pytest.fixture
def holdings() -> Holdings:
    return Holdings(lambda: 0.0)


@pytest.fixture
def publisher(post: FakePost, holdings: Holdings) -> Iterator[Publisher]:
    service = Publisher(post, holdings, now_ms=lambda: 0.0, settle_timeout_s=1.0)
    service.start()
    yield service
    service.stop()
    service.raise_if_failed()


@pytest.fixture
def open_request(publisher: Publisher, holdings: Holdings) -> Callable[[str], None]:
    def open_one(request_id: str) -> None:
        held = tenure(request_id)
        holdings.hold(held)
        publisher.open(admission(held))

    return open_one


def test_a_first_token_goes_out_without_waiting_for_more(
    publisher: Publisher, post: FakePost, open_request: Callable[[str], None]
) -> None:
    open_request("q-1")
    publisher.publish([event("a")])
    wait_until(lambda: post.texts.get("q-1") == "a", description="the first token")


def test_tokens_that_come_together_go_out_together(
    publisher: Publisher, post: FakePost, open_request: Callable[[str], None]
) -> None:
    open_request("q-1")
    publisher.publish([event("a")])
    wait_until(lambda: post.num_sent == 1, description="the first token")
    for offset in range(1, 40):
        publisher.publish([event("b", offset=offset)])
    wait_until(lambda: post.published["q-1"] == 40, description="all tokens")
    assert post.num_sent <= 4


def test_an_ended_request_is_told_and_let_go(
    publisher: Publisher, post: FakePost, holdings: Holdings, open_request: Callable[[str], None]
) -> None:
    open_request("q-1")
    publisher.publish([event("ab"), event("c", offset=2, ends="length")])
    wait_until(lambda: not len(holdings), description="the request is let go")
    assert [finish.terminal.text for finish in post.finished] == ["abc"]
    assert publisher.statistics().num_ended == 1


@pytest.mark.parametrize("fault", ["num_outages", "num_lost_replies"])
def test_nothing_is_lost_or_doubled_while_the_server_is_away(
    publisher: Publisher, post: FakePost, holdings: Holdings, open_request: Callable[[str], None], fault: str
) -> None:
    setattr(post, fault, 3)
    open_request("q-1")
    for offset, character in enumerate("abcdefgh"):
        publisher.publish([event(character, offset=offset)])
    publisher.publish([event("i", offset=8, ends="length")])
    wait_until(lambda: not len(holdings), description="the request is told")
    assert post.texts == {"q-1": "abcdefghi"}
    assert len(post.finished) == 1


def test_a_server_that_went_back_gets_the_missing_tokens_again(
    publisher: Publisher, post: FakePost, holdings: Holdings, open_request: Callable[[str], None]
) -> None:
    open_request("q-1")
    publisher.publish([event("abc")])
    wait_until(lambda: post.published.get("q-1") == 3, description="three tokens")
    with post.lock:
        post.published["q-1"], post.texts["q-1"] = 1, "a"
    publisher.publish([event("d", offset=3)])
    publisher.publish([event("e", offset=4, ends="length")])
    wait_until(lambda: not len(holdings), description="the request is told")
    assert post.texts == {"q-1": "abcde"}


def test_a_fenced_request_is_dropped_without_a_word(
    publisher: Publisher, post: FakePost, holdings: Holdings, open_request: Callable[[str], None]
) -> None:
    open_request("q-1")
    open_request("q-2")
    post.fenced.add("q-1")
    publisher.publish([event("a"), event("x", request_id="q-2")])
    wait_until(lambda: holdings.take_fenced() == ["q-1"], description="the loop hears of the fence")
    publisher.publish([event("b", offset=1), event("y", offset=1, request_id="q-2", ends="length")])
    wait_until(lambda: not len(holdings), description="the other request is told")
    assert post.texts == {"q-2": "xy"}


def test_a_cancel_is_heard_while_nothing_is_published(
    publisher: Publisher, post: FakePost, holdings: Holdings, open_request: Callable[[str], None]
) -> None:
    open_request("q-1")
    publisher.publish([])  # a step of a long prompt, say
    post.cancelled = ("q-1", "another-worker's")
    wait_until(lambda: holdings.endings() == [("q-1", "cancelled")], description="the cancel")


def test_a_rejected_request_gets_its_error(publisher: Publisher, post: FakePost, holdings: Holdings) -> None:
    held = tenure("q-1")
    holdings.hold(held)
    publisher.reject(held, code="model_not_found", message="no such model")
    wait_until(lambda: not len(holdings), description="the error is told")
    assert [finish.terminal.type for finish in post.finished] == ["error"]


def test_a_full_server_that_takes_no_delta_still_takes_final_words(
    publisher: Publisher, post: FakePost, holdings: Holdings, open_request: Callable[[str], None]
) -> None:
    open_request("q-1")
    open_request("q-2")
    post.faults["q-1"] = QueueBusyError("full", retry_after_s=1.0)
    publisher.publish([event("a"), event("x", request_id="q-2", ends="length")])
    wait_until(lambda: len(holdings) == 1, description="q-2 is let go")
    assert post.texts == {"q-2": "x"}
    post.faults.clear()
    publisher.publish([event("b", offset=1, ends="length")])
    wait_until(lambda: not len(holdings), description="nothing of q-1 was lost")
    assert post.texts == {"q-1": "ab", "q-2": "x"}
    assert post.condemned == []


@pytest.mark.parametrize("ends", ["length", None])
def test_a_request_that_the_server_cannot_deal_with_is_ended_and_harms_nobody(
    publisher: Publisher,
    post: FakePost,
    holdings: Holdings,
    open_request: Callable[[str], None],
    ends: FinishReason | None,
) -> None:
    open_request("q-1")
    open_request("q-2")
    post.faults["q-1"] = ResponseError("WRONGTYPE")
    publisher.publish([event("a", ends=ends), event("x", request_id="q-2", ends="length")])
    wait_until(lambda: not len(holdings), description="both are over")
    assert (post.condemned, post.texts) == (["q-1"], {"q-2": "x"})
    assert holdings.take_fenced() == ["q-1"]


@pytest.mark.parametrize(("num_retries", "terminals"), [(1, []), (0, ["error"])])
def test_a_request_on_which_the_engine_failed_is_retried_as_often_as_the_server_says(
    publisher: Publisher,
    post: FakePost,
    holdings: Holdings,
    open_request: Callable[[str], None],
    num_retries: int,
    terminals: list[str],
) -> None:
    post.num_retries_left = num_retries
    open_request("q-1")
    publisher.publish([event("", ends="error", error=RowError("engine_error", "boom"))])
    wait_until(lambda: not len(holdings), description="it is let go")
    assert [finish.terminal.type for finish in post.finished] == terminals
    wait_until(lambda: publisher.statistics().num_retried == num_retries, description="it is counted")


def test_a_request_whose_own_fault_it_is_is_not_retried(
    publisher: Publisher, post: FakePost, holdings: Holdings, open_request: Callable[[str], None]
) -> None:
    post.num_retries_left = 1
    open_request("q-1")
    publisher.publish([event("", ends="error", error=RowError("context_length_exceeded", "too long"))])
    wait_until(lambda: not len(holdings), description="it is told")
    assert [finish.terminal.type for finish in post.finished] == ["error"]


@pytest.fixture
def patient(post: FakePost, holdings: Holdings) -> Iterator[Publisher]:
    """A publisher that waits an hour for more tokens; q-1's first one is out."""
    service = Publisher(post, holdings, now_ms=lambda: 0.0, settle_timeout_s=1.0, flush_interval_s=3600.0)
    held = tenure("q-1")
    holdings.hold(held)
    service.start()
    service.open(admission(held))
    service.publish([event("a")])
    wait_until(lambda: post.texts.get("q-1") == "a", description="the first token")
    yield service
    service.stop()
    service.raise_if_failed()


def test_tokens_wait_for_others_as_long_as_was_asked_for(patient: Publisher, post: FakePost) -> None:
    patient.publish([event("b", offset=1)])
    assert post.texts == {"q-1": "a"}
    patient.stop()
    assert post.texts == {"q-1": "ab"}


def test_what_ends_the_last_request_goes_out_without_waiting_for_more(patient: Publisher, holdings: Holdings) -> None:
    patient.publish([event("b", offset=1, ends="length")], is_idle=True)
    wait_until(lambda: not len(holdings), description="its last word")


def test_slow_telling_makes_flushes_rarer_within_bounds() -> None:
    assert cycle_s(0.001, 0.05) == pytest.approx(0.051)
    assert cycle_s(0.003, 0.05) == pytest.approx(0.075)
    assert cycle_s(0.010, 0.05) == pytest.approx(0.085)
    assert cycle_s(0.200, 0.05) == pytest.approx(0.250)


def test_stopping_writes_down_what_is_not_due_yet(post: FakePost, holdings: Holdings) -> None:
    service = Publisher(post, holdings, now_ms=lambda: 0.0, settle_timeout_s=5.0)
    held = tenure("q-1")
    holdings.hold(held)
    service.start()
    service.open(admission(held, is_streaming=False))
    service.publish([event("ab")])
    service.stop()
    assert post.texts == {"q-1": "ab"}
    assert holdings.holds(held)


def test_an_idle_publisher_sends_nothing(publisher: Publisher, post: FakePost) -> None:
    publisher.publish([])
    publisher.stop()
    assert post.num_sent == 0
