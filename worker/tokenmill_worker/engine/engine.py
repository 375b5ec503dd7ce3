"""The engine: requests in, token events out, one step at a time. Knows no queue, no model class and no device."""

import logging
import time
from collections import deque
from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import replace
from operator import attrgetter
from typing import TYPE_CHECKING

import numpy as np

from tokenmill_worker.engine import echo
from tokenmill_worker.engine.active import ActiveRequest, Choice
from tokenmill_worker.engine.ahead import InFlight, is_overlapped, launcher_of
from tokenmill_worker.engine.api import (
    Capacity,
    EngineConfig,
    EngineError,
    EngineRequest,
    EngineStatistics,
    FinishReason,
    InvalidRequestError,
    Logprobs,
    ModelLostError,
    RequestOutput,
    RowError,
    SamplingParams,
    TokenEvent,
    is_out_of_memory,
)
from tokenmill_worker.engine.batch import PAGE_SIZE, Draws, Loaded, Runner, Tokenizer
from tokenmill_worker.engine.fluent import FluentRows
from tokenmill_worker.engine.metronome import Clock, Metronome, pacer_for, run_whole
from tokenmill_worker.engine.offline import Prompts, offline_requests, run_offline
from tokenmill_worker.engine.pacer import Limits
from tokenmill_worker.engine.packer import pack
from tokenmill_worker.engine.pages import Pages
from tokenmill_worker.engine.scheduler import Scheduled, Scheduler
from tokenmill_worker.engine.sequence import Sequence
from tokenmill_worker.engine.validation import Validator

if TYPE_CHECKING:
    from tokenmill_worker.engine.step_log import StepLog

_logger = logging.getLogger(__name__)
_Outcome = tuple[Scheduled, Draws]  # a step or a part of one, and what its sampled rows drew


def load(config: EngineConfig) -> Loaded:
    """The runner and tokenizer of `config.model`. Only a real model imports torch."""
    if config.model.partition("?")[0] == "echo":
        return echo.load(config)
    from tokenmill_worker.engine import loading

    return loading.load(config)


class Engine:
    """Continuous batching over one runner.

    `step` and all that changes requests belong to one thread; `validate`, `cancel` and `statistics` are for any.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        runner: Runner | None = None,
        tokenizer: Tokenizer | None = None,
        clock: Clock = time.perf_counter,
    ) -> None:
        loaded = load(config) if runner is None or tokenizer is None else Loaded(runner, tokenizer, {})
        self.config = config
        self.tokenizer = loaded.tokenizer
        self.default_params: Mapping[str, float | int] = loaded.default_params
        self.computing: Mapping[str, str] = loaded.computing
        self.max_model_len = min(loaded.runner.max_model_len, config.max_model_len or loaded.runner.max_model_len)
        self._runner = loaded.runner
        self._launcher = launcher_of(loaded.runner)
        self._is_overlapped = is_overlapped(config, loaded.runner)
        self._in_flight: deque[InFlight] = deque()  # launched and not read, the oldest first
        self._close_runner, self._set_num_threads = loaded.close, loaded.set_num_threads
        self._pages = Pages(
            self._runner.num_pages,
            enable_prefix_caching=config.enable_prefix_caching,
            salt=self._runner.fingerprint,
        )
        self._scheduler = Scheduler(
            self._pages,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            interval=config.scheduling_interval,
        )
        self._fluent = FluentRows(self._scheduler.rows, self.tokenizer, vocab_size=self._runner.vocab_size)
        run = run_whole(self._runner, self._launcher if self._is_overlapped else None)
        pacer = pacer_for(config, self._runner, self.computing, run, clock=clock)
        self._metronome = Metronome(pacer, is_overlapped=self._is_overlapped, clock=clock)
        self._validator = Validator(
            vocab_size=self._runner.vocab_size,
            max_model_len=self.max_model_len,
            max_num_seqs=config.max_num_seqs,
            num_pages=self._runner.num_pages,
        )
        self._requests: dict[str, ActiveRequest] = {}
        self._cancelled: dict[str, FinishReason] = {}  # from the next step on
        self._events: list[TokenEvent] = []  # of the step under way
        self._num_arrivals = self._num_steps = self._num_finished = self._num_drawn_tokens = 0
        self._num_parked = 0  # over all requests
        self.step_log: StepLog | None = None  # set, and unset, by whoever wants to see the steps; from any thread

    @property
    def device(self) -> str:
        """Where the model runs, as torch names devices: what `auto` came to."""
        return self._runner.device

    @property
    def fingerprint(self) -> str:
        """Of weights, tokenizer and template: another engine with the same one continues a request identically."""
        return self._runner.fingerprint

    # The step

    def step(self) -> list[TokenEvent]:
        """Every row gets on by one token or one prefill chunk. News, in no order, may be those of the step before."""
        self._metronome.begin()
        self._end_cancelled()
        if self._is_overlapped:
            self._overlapped_step()
        else:
            self._plain_step()
        self._metronome.end()
        return self._take_events()

    def _plain_step(self) -> None:
        """Schedule, run, commit."""
        step = self._schedule()
        self._run_and_commit(step)
        self._metronome.ran(step)

    def _overlapped_step(self) -> None:
        """Schedule, launch, commit the step before: the device works while the host reads, tells and plans.

        Tokens that were drawn and not read go into the next step as they lie on the device. A row that turns out to
        have ended a step ago takes part once too often, and what it draws is dropped.
        """
        self._commit_in_flight(but=0 if self._scheduler.must_know_draws else 1)  # 1: nothing, unless interrupted
        step = self._schedule()
        is_launched = bool(step) and self._launch(step)
        self._commit_in_flight(but=int(is_launched))

    def reconfigure(
        self,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        scheduling_interval: int,
        num_threads: int | None = None,
    ) -> None:
        """Other limits from the next step on; requests in flight stay. Raises EngineError for more rows than loaded.

        `num_threads` None leaves them as they are. Called between steps, by the thread that takes them.
        """
        if max_num_seqs > self._validator.max_num_seqs:
            raise EngineError(f"max_num_seqs is at most {self._validator.max_num_seqs} here, as it was when loaded")
        self.config = replace(
            self.config,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            scheduling_interval=scheduling_interval,
            num_threads=num_threads or self.config.num_threads,
        )
        if num_threads is not None:
            self._set_num_threads(num_threads)
        self._scheduler.reconfigure(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            interval=scheduling_interval,
        )

    def _schedule(self) -> Scheduled:
        step = self._scheduler.schedule(self._metronome.choose(self._scheduler))
        if step:
            self._num_steps += 1
            if (log := self.step_log) is not None:
                log.add_step(self._num_steps, step)
        return step

    # Requests in and out

    def validate(self, prompt_token_ids: SequenceOf[int], params: SamplingParams) -> None:
        """Raises InvalidRequestError for a request that could never run here, whatever else runs. Any thread."""
        self._validator.validate(prompt_token_ids, params)

    def add_request(self, request: EngineRequest, *, is_validated: bool = False) -> None:
        """Queue it; it joins the batch at the next step that has room. Raises InvalidRequestError.

        `is_validated`: `validate` has seen its prompt and parameters, on another thread perhaps.
        """
        check = self._validator.validate_resume if is_validated else self._validator.validate
        check(request.prompt_token_ids, request.params, request.resume)
        if request.request_id in self._requests:
            raise InvalidRequestError(f"request {request.request_id} is already running", code="duplicate_request")
        max_total = self._validator.max_total(request.prompt_token_ids, request.params)
        active = ActiveRequest.start(request, self.tokenizer, max_total=max_total, arrival=self._num_arrivals)
        self._requests[request.request_id] = active
        self._fluent.beware_of(active.choices[0].sequence.stop_token_ids)
        self._num_arrivals += 1
        unfinished = [choice.sequence for choice in active.unfinished]
        for sequence in unfinished:
            sequence.arrived_s = self._metronome.clock()
        if unfinished:
            self._scheduler.add(unfinished[0])
            active.parked = unfinished[1:]
            self._num_parked += len(active.parked)
        self._tell_finished_by_resume(active)

    def cancel(self, request_id: str, reason: FinishReason = "cancelled") -> None:
        """End it at the next step with a last event that tells what was held back. An unknown id is no error."""
        if request_id in self._requests:
            self._cancelled[request_id] = reason

    def drop(self, request_id: str) -> None:
        """Forget it without a word: it belongs to somebody else now."""
        active = self._requests.pop(request_id, None)
        if active is not None:
            self._leave(active)
        self._cancelled.pop(request_id, None)
        self._events = [event for event in self._events if event.request_id != request_id]

    def has_work(self) -> bool:
        return bool(self._requests or self._events)

    def close(self) -> None:
        for request_id in list(self._requests):
            self.drop(request_id)
        self._in_flight.clear()
        self._close_runner()

    def _tell_finished_by_resume(self, active: ActiveRequest) -> None:
        """Choices that the resumed tokens alone complete, and the last word of a request that lacked only that."""
        if not active.unfinished:
            active.choices[-1].transcript.tell_end_again()
        for choice in active.choices:
            if choice.is_finished:
                self._tell(choice)

    def _end_cancelled(self) -> None:
        while self._cancelled:
            request_id, reason = self._cancelled.popitem()  # one by one: another thread may be adding
            if request_id in self._requests:
                self._end(request_id, reason)

    def _end(self, request_id: str, reason: FinishReason, error: RowError | None = None) -> None:
        """Out of the schedule, and a last event for each choice that has not had one."""
        active = self._requests[request_id]
        self._leave(active)
        for choice in active.unfinished:
            choice.transcript.catch_up(choice.sequence.num_output_tokens)
            choice.transcript.finish(reason)
            self._tell(choice, error)

    def _leave(self, active: ActiveRequest) -> None:
        self._num_parked -= len(active.parked)
        active.parked = []
        for choice in active.choices:
            self._scheduler.remove(choice.sequence)

    # Running rows, and what becomes of one that fails

    def _launch(self, step: Scheduled) -> bool:
        """False: it could not be launched, so everything before it was committed and it was run the plain way."""
        try:
            launch = self._launcher.launch(pack(step, self._scheduler.rows))
        except ModelLostError:
            raise
        except Exception as error:  # as in _run, which does it again and finds out who is guilty
            _logger.warning("A step of %d rows could not be launched (%s)", len(step), type(error).__name__)
            self._commit_in_flight()
            self._run_and_commit(step.only(np.flatnonzero(self._scheduler.is_there(step)).tolist()))
            return False
        self._scheduler.advance(step)
        self._in_flight.append(InFlight(step, launch))
        return True

    def _commit_in_flight(self, *, but: int = 0) -> None:
        """All that was launched, but for the last so many steps."""
        while len(self._in_flight) > but:
            step, launch = self._in_flight[0]
            try:
                drawn = launch.read()
            except Exception as error:  # the device's own, told late: nothing that runs there can be trusted
                _logger.warning("A launched step failed; the loop is not overlapped from now on", exc_info=error)
                self._forget_in_flight()
                return
            self._in_flight.popleft()
            self._commit(step, drawn)
            self._metronome.ran(step)

    def _forget_in_flight(self) -> None:
        """All its rows begin again, from the tokens that are known, in plain steps that tell who is guilty."""
        self._is_overlapped = False
        while self._in_flight:
            step = self._in_flight.pop().step
            for index in np.flatnonzero(self._scheduler.is_there(step)).tolist():
                self._scheduler.preempt(step.sequences[index])

    def _run_and_commit(self, step: Scheduled) -> None:
        for part, drawn in self._run(step):
            self._scheduler.advance(part)
            self._commit(part, drawn)

    def _run(self, step: Scheduled) -> list[_Outcome]:
        """The runner's answer. A fault costs the row that causes it, never its neighbours."""
        while step:
            batch = pack(step, self._scheduler.rows)
            try:
                return [(step, Draws.of(self._runner.run(batch)))]
            except ModelLostError:  # no request is to blame, and none can run here any more
                raise
            except Exception as error:  # whatever a model raises must end one request, not the worker
                if len(step) == 1 or not is_out_of_memory(error):
                    return self._run_apart(step, error)
                step = self._without_youngest(step)
        return []

    def _run_apart(self, step: Scheduled, error: Exception) -> list[_Outcome]:
        """The step failed: run its rows one by one, so that only the guilty fail. Doing a row again changes nothing."""
        if len(step) == 1:
            request_id = step.sequences[0].request_id
            _logger.error("Request %s failed", request_id, exc_info=error)
            self._fail(request_id, RowError.of(error))
            return []
        _logger.warning("A step of %d rows failed (%s); they run one by one", len(step), type(error).__name__)
        return [outcome for index in range(len(step)) for outcome in self._run_alone(step, index)]

    def _run_alone(self, step: Scheduled, index: int) -> list[_Outcome]:
        """Unless another choice of its request has failed meanwhile."""
        return self._run(step.only([index])) if step.sequences[index].is_running else []

    def _without_youngest(self, step: Scheduled) -> Scheduled:
        """The device is out of memory: the last in rank waits for a smaller step."""
        youngest = max(step.sequences, key=attrgetter("rank"))
        self._scheduler.preempt(youngest)
        return step.only([index for index, sequence in enumerate(step.sequences) if sequence is not youngest])

    def _commit(self, step: Scheduled, drawn: Draws) -> None:
        """The rows' tokens are stored and the next ones drawn, unless a row failed or its request ended meanwhile."""
        sampled = step.is_sampled.nonzero()[0]
        for index, error in drawn.errors.items():
            if self._scheduler.is_there(step)[sampled[index]]:
                self._fail(step.sequences[sampled[index]].request_id, error)
        is_there = self._scheduler.commit(step)
        for index in (is_there & self._scheduler.rows.is_choice[step.rows]).nonzero()[0].tolist():
            self._unpark(step.sequences[index])
        drew = is_there[sampled].nonzero()[0]
        token_ids, rows = drawn.token_ids[drew], sampled[drew]
        self._num_drawn_tokens += len(drew)
        self._scheduler.rows.append(step.rows[rows], token_ids)
        if drawn.redrawn:
            self._scheduler.rewind(step, [row for row, place in zip(rows, drew, strict=True) if place in drawn.redrawn])
        is_told = self._fluent.can_tell(step.rows[rows], token_ids)
        self._events += self._fluent.events(step, rows[is_told], token_ids[is_told])
        others = (column[~is_told].tolist() for column in (drew, rows, token_ids))
        for place, index, token_id in zip(*others, strict=True):
            self._append(step.sequences[index], token_id, drawn.logprobs.get(place))

    def _fail(self, request_id: str, error: RowError) -> None:
        """What the request computed is in doubt, so nobody may find it in the prefix cache."""
        if request_id not in self._requests:  # it ended while the step ran, or with another of its choices
            return
        for choice in self._requests[request_id].choices:
            self._pages.forget(choice.sequence.pages)
        self._end(request_id, "error", error)

    def _unpark(self, sequence: Sequence) -> None:
        """Once the prompt is in the pages, the other choices can share it."""
        active = self._requests[sequence.request_id]
        if sequence.n_done < sequence.n_prompt:
            return
        self._num_parked -= len(active.parked)
        parked, active.parked = active.parked, []
        for other in parked:
            self._scheduler.add(other)

    def _append(self, sequence: Sequence, token_id: int, logprobs: Logprobs | None) -> None:
        """One more token for the transcript, which is caught up with first; the row's is in its place already."""
        choice = self._requests[sequence.request_id].choices[sequence.index]
        transcript = choice.transcript
        if transcript.can_be_fluent:
            transcript.catch_up(sequence.num_output_tokens - 1)
        if logprobs is None and (event := transcript.say(token_id)) is not None:
            self._events.append(event)
        else:
            transcript.add(token_id, logprobs)
            if choice.is_finished:
                self._scheduler.finish(sequence)
            self._tell(choice)
        if transcript.can_be_fluent:
            self._scheduler.rows.is_fluent[sequence.row] = transcript.is_fluent

    # Events

    def _tell(self, choice: Choice, error: RowError | None = None) -> None:
        """What is new of this choice; with its usage the request is over and forgotten."""
        usage = None
        if (reason := choice.transcript.finish_reason) is not None:
            if (log := self.step_log) is not None:
                log.add_end(choice.sequence.request_id, choice.sequence.index, reason)
            active = self._requests[choice.sequence.request_id]
            usage = active.usage() if active.is_last_word(choice) else None
        event = choice.transcript.take_event(usage=usage, error=error)
        if event is not None:
            self._events.append(event)
            if usage is not None:
                del self._requests[choice.sequence.request_id]
                self._num_finished += 1

    def _take_events(self) -> list[TokenEvent]:
        events, self._events = self._events, []
        return events

    # Looking in

    def capacity(self) -> Capacity:
        """What could be admitted now, were it added: room less what already runs or waits."""
        scheduler = self._scheduler
        num_rows = self._limits.num_rows - len(scheduler.running) - len(scheduler.waiting) - self._num_parked
        if num_rows <= 0:  # also: however many wait, the sum below is over fewer than there are rows
            return Capacity(0, 0)
        parked = [sequence for active in self._requests.values() for sequence in active.parked]
        num_pages = scheduler.num_unpromised_pages()
        num_pages -= sum(map(scheduler.num_expected_pages, scheduler.waiting + parked))
        return Capacity(num_rows, num_pages * PAGE_SIZE) if num_pages > 0 else Capacity(0, 0)

    @property
    def _limits(self) -> Limits:
        """Of the last step: of the next one, as far as it can be known."""
        scheduler = self._scheduler
        return self._metronome.limits or Limits(scheduler.max_num_batched_tokens, scheduler.max_num_rows)

    def statistics(self) -> EngineStatistics:
        """One look at everything. From any thread; counters of a step under way may be ahead of its events."""
        return EngineStatistics(
            num_waiting=len(self._scheduler.waiting) + self._num_parked,
            num_running=len(self._scheduler.running),
            num_steps=self._num_steps,
            num_free_pages=self._pages.num_free,
            num_pages=self._pages.num_pages,
            num_prefill_tokens=self._scheduler.num_prefill_tokens,
            num_decode_tokens=self._scheduler.num_decode_tokens,
            num_drawn_tokens=self._num_drawn_tokens,
            num_cached_tokens=self._scheduler.num_cached_tokens,
            num_preemptions=self._scheduler.num_preemptions,
            num_finished=self._num_finished,
            num_batched_tokens_limit=self._limits.num_tokens,
            num_rows_limit=self._limits.num_rows,
            observed_step_ms=round(self._metronome.observed_s * 1000, 3),
            predicted_step_ms=round(self._metronome.predicted_s * 1000, 3),
            decode_step_ms=self._metronome.decode_step_ms,
        )

    def check_integrity(self) -> None:
        """Raises AssertionError when requests, rows and pages contradict each other. Between steps only."""
        self._scheduler.check_integrity()
        scheduled = [*self._scheduler.waiting, *self._scheduler.running]
        parked = [row for active in self._requests.values() for row in active.parked]
        assert len(parked) == self._num_parked, "parked choices are miscounted"
        unfinished = [choice.sequence for active in self._requests.values() for choice in active.unfinished]
        assert {id(row) for row in scheduled + parked} == {id(row) for row in unfinished}, (
            "a choice is lost, or a ghost"
        )
        assert len(scheduled + parked) == len(unfinished), "a choice is scheduled twice"
        for active in self._requests.values():
            for choice in active.choices:
                num_unheard = choice.sequence.num_output_tokens - choice.transcript.num_tokens
                assert num_unheard == 0 or (num_unheard > 0 and choice.transcript.is_fluent), "tokens and text disagree"

    # Offline

    def generate(
        self, prompts: Prompts, params: SamplingParams | SequenceOf[SamplingParams] | None = None
    ) -> list[RequestOutput]:
        """Answers in the order of the prompts. `params`: one for all, one each, or None for the model's own defaults.

        A prompt that could never run raises InvalidRequestError with its index before anything runs.
        """
        if self.has_work():
            raise EngineError("generate() needs an engine with nothing else to do")
        if params is None:
            params = SamplingParams(**self.default_params)  # type: ignore[arg-type]
        requests = offline_requests(prompts, params, self.tokenizer)
        for index, request in enumerate(requests):
            try:
                self.validate(request.prompt_token_ids, request.params)
            except InvalidRequestError as error:
                raise InvalidRequestError(f"prompt {index}: {error}", param=error.param, code=error.code) from None
        # One batch inside and the next one queued: a freed row never waits for a request to be built.
        return run_offline(self, requests, max_active=2 * self.config.max_num_seqs)
