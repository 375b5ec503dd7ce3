"""The engine: requests in, token events out, one step at a time. Knows no queue, no model class and no device."""

import logging
from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf

from tokenmill_worker.engine import echo
from tokenmill_worker.engine.active import ActiveRequest, Choice
from tokenmill_worker.engine.api import (
    Capacity,
    EngineConfig,
    EngineError,
    EngineRequest,
    EngineStatistics,
    FinishReason,
    InvalidRequestError,
    RequestOutput,
    RowError,
    SamplingParams,
    TokenEvent,
)
from tokenmill_worker.engine.batch import PAGE_SIZE, Loaded, Runner, Sampled, Tokenizer
from tokenmill_worker.engine.offline import Prompts, offline_requests, run_offline
from tokenmill_worker.engine.packer import pack
from tokenmill_worker.engine.pages import Pages
from tokenmill_worker.engine.scheduler import Scheduled, Scheduler
from tokenmill_worker.engine.validation import Validator

_logger = logging.getLogger(__name__)
_Outcome = tuple[Scheduled, Sampled | None]  # None: a prefill chunk that ends before the last known token


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
        self, config: EngineConfig, *, runner: Runner | None = None, tokenizer: Tokenizer | None = None
    ) -> None:
        loaded = load(config) if runner is None or tokenizer is None else Loaded(runner, tokenizer, {})
        self.config = config
        self.tokenizer = loaded.tokenizer
        self.default_params: Mapping[str, float | int] = loaded.default_params
        self.max_model_len = min(loaded.runner.max_model_len, config.max_model_len or loaded.runner.max_model_len)
        self._runner = loaded.runner
        self._pages = Pages(
            self._runner.num_pages,
            enable_prefix_caching=config.enable_prefix_caching,
            salt=self._runner.fingerprint,
        )
        self._scheduler = Scheduler(
            self._pages,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
        )
        self._validator = Validator(
            vocab_size=self._runner.vocab_size,
            max_model_len=self.max_model_len,
            max_num_seqs=config.max_num_seqs,
            num_pages=self._runner.num_pages,
        )
        self._requests: dict[str, ActiveRequest] = {}
        self._cancelled: dict[str, FinishReason] = {}  # from the next step on
        self._events: list[TokenEvent] = []  # of the step under way
        self._num_arrivals = self._num_steps = self._num_finished = 0
        self._num_prefill_tokens = self._num_decode_tokens = 0

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
        """Schedule, run, commit: every row in the batch gets on by one token or one prefill chunk."""
        self._end_cancelled()
        rows = self._scheduler.schedule()
        self._num_steps += bool(rows)
        for row, sampled in self._run(rows):
            self._commit(row, sampled)
        return self._take_events()

    # Requests in and out

    def validate(self, prompt_token_ids: SequenceOf[int], params: SamplingParams) -> None:
        """Raises InvalidRequestError for a request that could never run here, whatever else runs. Any thread."""
        self._validator.validate(prompt_token_ids, params)

    def add_request(self, request: EngineRequest) -> None:
        """Queue it; it joins the batch at the next step that has room. Raises InvalidRequestError."""
        self._validator.validate(request.prompt_token_ids, request.params, request.resume)
        if request.request_id in self._requests:
            raise InvalidRequestError(f"request {request.request_id} is already running", code="duplicate_request")
        max_total = self._validator.max_total(request.prompt_token_ids, request.params)
        active = ActiveRequest.start(request, self.tokenizer, max_total=max_total, arrival=self._num_arrivals)
        self._requests[request.request_id] = active
        self._num_arrivals += 1
        unfinished = [choice.sequence for choice in active.unfinished]
        if unfinished:
            self._scheduler.add(unfinished[0])
            active.parked = unfinished[1:]
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
            choice.transcript.finish(reason)
            self._tell(choice, error)

    def _leave(self, active: ActiveRequest) -> None:
        for choice in active.choices:
            self._scheduler.remove(choice.sequence)

    # Running rows, and what becomes of one that fails

    def _run(self, rows: list[Scheduled]) -> list[_Outcome]:
        """The runner's answer for each row. A fault costs the row that causes it, never its neighbours."""
        while rows:
            batch = pack(rows)
            try:
                drawn = iter(self._runner.run(batch))
            except Exception as error:  # whatever a model raises must end one request, not the worker
                if len(rows) == 1 or not _is_out_of_memory(error):
                    return self._run_apart(rows, error)
                rows = self._without_youngest(rows)
            else:
                return [(row, next(drawn) if row.is_sampled else None) for row in rows]
        return []

    def _run_apart(self, rows: list[Scheduled], error: Exception) -> list[_Outcome]:
        """The step failed: run its rows one by one, so that only the guilty fail. Doing a row again changes nothing."""
        if len(rows) == 1:
            _logger.error("Request %s failed", rows[0].sequence.request_id, exc_info=error)
            code = "out_of_memory" if _is_out_of_memory(error) else "engine_error"
            return [(rows[0], Sampled(error=RowError(code, f"{type(error).__name__}: {error}")))]
        _logger.warning("A step of %d rows failed (%s); they run one by one", len(rows), type(error).__name__)
        return [outcome for row in rows for outcome in self._run([row])]

    def _without_youngest(self, rows: list[Scheduled]) -> list[Scheduled]:
        """The device is out of memory: the last in rank waits for a smaller step."""
        youngest = max(rows, key=lambda row: row.sequence.rank)
        self._scheduler.preempt(youngest.sequence)
        return [row for row in rows if row is not youngest]

    def _commit(self, row: Scheduled, sampled: Sampled | None) -> None:
        """The row's tokens are stored and the next one is drawn, unless it failed or its request ended meanwhile."""
        sequence = row.sequence
        if not sequence.is_running:
            return
        if sampled is not None and sampled.error is not None:
            self._fail(sequence.request_id, sampled.error)
            return
        self._count(row)
        self._scheduler.commit(row)
        active = self._requests[sequence.request_id]
        if active.parked and sequence.n_done >= sequence.n_prompt:
            self._unpark(active)
        if sampled is not None:
            self._append(active.choices[sequence.index], sampled)

    def _fail(self, request_id: str, error: RowError) -> None:
        """What the request computed is in doubt, so nobody may find it in the prefix cache."""
        for choice in self._requests[request_id].choices:
            self._pages.forget(choice.sequence.pages)
        self._end(request_id, "error", error)

    def _unpark(self, active: ActiveRequest) -> None:
        """The prompt is in the pages: the other choices can share it."""
        parked, active.parked = active.parked, []
        for sequence in parked:
            self._scheduler.add(sequence)

    def _append(self, choice: Choice, sampled: Sampled) -> None:
        choice.sequence.append(sampled.token_id)
        choice.transcript.add(sampled.token_id, sampled.logprobs)
        if choice.is_finished:
            self._scheduler.finish(choice.sequence)
        self._tell(choice)

    def _count(self, row: Scheduled) -> None:
        if row.num_tokens == 1 and row.sequence.n_done >= row.sequence.n_prompt:
            self._num_decode_tokens += 1
        else:
            self._num_prefill_tokens += row.num_tokens

    # Events

    def _tell(self, choice: Choice, error: RowError | None = None) -> None:
        """What is new of this choice; with its usage the request is over and forgotten."""
        usage = None
        if choice.is_finished:
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
        active = self._requests.values()
        queued = [*self._scheduler.waiting, *(row for request in active for row in request.parked)]
        num_rows = self._scheduler.max_num_rows - len(self._scheduler.running) - len(queued)
        num_pages = self._scheduler.num_unpromised_pages() - sum(map(self._scheduler.num_expected_pages, queued))
        if num_rows <= 0 or num_pages <= 0:
            return Capacity(0, 0)
        return Capacity(num_rows, num_pages * PAGE_SIZE)

    def statistics(self) -> EngineStatistics:
        """One look at everything. From any thread; counters of a step under way may be ahead of its events."""
        num_parked = sum(len(active.parked) for active in list(self._requests.values()))
        return EngineStatistics(
            num_waiting=len(self._scheduler.waiting) + num_parked,
            num_running=len(self._scheduler.running),
            num_steps=self._num_steps,
            num_free_pages=self._pages.num_free,
            num_pages=self._pages.num_pages,
            num_prefill_tokens=self._num_prefill_tokens,
            num_decode_tokens=self._num_decode_tokens,
            num_cached_tokens=self._scheduler.num_cached_tokens,
            num_preemptions=self._scheduler.num_preemptions,
            num_finished=self._num_finished,
        )

    def check_integrity(self) -> None:
        """Raises AssertionError when requests, rows and pages contradict each other. Between steps only."""
        self._scheduler.check_integrity()
        scheduled = [*self._scheduler.waiting, *self._scheduler.running]
        parked = [row for active in self._requests.values() for row in active.parked]
        unfinished = [choice.sequence for active in self._requests.values() for choice in active.unfinished]
        assert {id(row) for row in scheduled + parked} == {id(row) for row in unfinished}, (
            "a choice is lost, or a ghost"
        )
        assert len(scheduled + parked) == len(unfinished), "a choice is scheduled twice"
        for active in self._requests.values():
            for choice in active.choices:
                assert choice.sequence.num_output_tokens == choice.transcript.num_tokens, "tokens and text disagree"

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


def _is_out_of_memory(error: Exception) -> bool:
    """By name: torch raises a class of its own, and torch is not imported here."""
    return isinstance(error, MemoryError) or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
