"""The same request, whatever happens around it, gives the same tokens. Each function is one thing that happens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tokenmill_worker.engine import Engine, EngineConfig, SamplingParams
from tokenmill_worker.engine.api import EngineRequest, ResumedChoice
from tokenmill_worker.engine.batch import PAGE_SIZE, Loaded, PackedBatch, Runner, Sampled
from tokenmill_worker.engine.pages import num_pages_for
from tokenmill_worker.engine.uniform import choice_seed

NUM_CHOICES = 3
NUM_TALKERS, TALKER_PROMPT, TALKER_TOKENS = 3, 30, 36  # two pages are expected, three are needed


@dataclass(frozen=True, slots=True)
class Subject:
    """One request of the matrix, and the tokens it gave all alone: what every other way must give again."""

    prompt: Sequence[int]
    params: SamplingParams
    expected: list[int]


class FewPages:
    """A runner that admits to only `num_pages` of its pages, so that rows must be preempted."""

    def __init__(self, runner: Runner, num_pages: int) -> None:
        self._runner = runner
        self.num_pages = num_pages
        self.vocab_size, self.max_model_len = runner.vocab_size, runner.max_model_len
        self.device, self.fingerprint = runner.device, runner.fingerprint

    def run(self, batch: PackedBatch) -> Sequence[Sampled]:
        return self._runner.run(batch)


class Matrix:
    """Runs the subjects in every way over one loaded model. Each way returns how many subjects came out different."""

    def __init__(self, loaded: Loaded, prompts: Sequence[Sequence[int]], *, max_tokens: int) -> None:
        self._loaded = loaded
        self.subjects = []
        for index, prompt in enumerate(prompts):
            params = mixed_params(index, max_tokens=max_tokens)
            self.subjects.append(Subject(prompt, params, self._alone(prompt, params)))

    def ways(self, reference_backend: Loaded) -> dict[str, Callable[[], int]]:
        return {
            "alone again": lambda: self._together(self._engine(max_num_seqs=1)),
            "mixed batch": lambda: self._together(self._engine(), fillers=True),
            "chunk 1": lambda: self._together(
                self._engine(max_num_batched_tokens=1, max_num_seqs=1), self.subjects[:2]
            ),
            "chunk 7": lambda: self._together(self._engine(max_num_batched_tokens=7, max_num_seqs=4)),
            "chunk 32": lambda: self._together(self._engine(max_num_batched_tokens=32)),
            "chunk 512": lambda: self._together(self._engine(max_num_batched_tokens=512)),
            "prefix hit": self.prefix_hit,
            "preempted": self.preempted,
            "resumed": self.resumed,
            "n > 1": self.several_choices,
            "reference backend": lambda: self._together(self._engine(loaded=reference_backend)),
        }

    def prefix_hit(self) -> int:
        engine = self._engine(enable_prefix_caching=True)
        different = self._together(engine) + self._together(engine)
        assert engine.statistics().num_cached_tokens > 0, "no prefix was found again"
        return different

    def preempted(self) -> int:
        """Short prompts that go on for longer than the engine was taught to expect, in a pool too small for all."""
        talkers = [self._talker(subject) for subject in self.subjects[:NUM_TALKERS]]
        expected_pages = num_pages_for(TALKER_PROMPT + 1 + PAGE_SIZE)
        few = FewPages(self._loaded.runner, len(talkers) * expected_pages + 1)
        engine = self._engine(loaded=self._loaded._replace(runner=few))
        engine.generate([talkers[0].prompt], SamplingParams(max_tokens=1))  # teaches it to expect one token
        different = self._together(engine, talkers)
        assert engine.statistics().num_preemptions > 0, "nothing had to be preempted"
        return different

    def _talker(self, subject: Subject) -> Subject:
        prompt = subject.prompt[:TALKER_PROMPT]
        params = replace(subject.params, max_tokens=TALKER_TOKENS, ignore_eos=True)
        return Subject(prompt, params, self._alone(prompt, params))

    def resumed(self) -> int:
        """Another worker told the first half; this one must go on with the very tokens that the first would have."""
        engine = self._engine()
        told: dict[str, list[int]] = {}
        for index, subject in enumerate(self.subjects):
            half = subject.expected[: len(subject.expected) // 2]
            told[str(index)] = list(half)
            resume = (ResumedChoice(token_ids=tuple(half)),)
            engine.add_request(
                EngineRequest(
                    request_id=str(index), prompt_token_ids=subject.prompt, params=subject.params, resume=resume
                )
            )
        while engine.has_work():
            for event in engine.step():
                told[event.request_id].extend(event.token_ids)
        return sum(told[str(index)] != subject.expected for index, subject in enumerate(self.subjects))

    def several_choices(self) -> int:
        """Choice k is the same request with the k-th seed, and choice 0 the request itself."""
        params = [replace(subject.params, n=NUM_CHOICES) for subject in self.subjects]
        outputs = self._engine().generate([subject.prompt for subject in self.subjects], params)
        different = 0
        for subject, output in zip(self.subjects, outputs, strict=True):
            seed = subject.params.seed or 0
            alone = [
                self._alone(subject.prompt, replace(subject.params, seed=choice_seed(seed, k)))
                for k in range(1, NUM_CHOICES)
            ]
            different += [choice.token_ids for choice in output.choices] != [subject.expected, *alone]
        return different

    def _alone(self, prompt: Sequence[int], params: SamplingParams) -> list[int]:
        return self._engine(max_num_seqs=1).generate([prompt], params)[0].token_ids

    def _together(self, engine: Engine, subjects: Sequence[Subject] | None = None, *, fillers: bool = False) -> int:
        subjects = subjects or self.subjects
        prompts, params = [subject.prompt for subject in subjects], [subject.params for subject in subjects]
        if fillers:  # neighbours of other lengths that come and go
            prompts += [prompt[: 5 + 9 * index] for index, prompt in enumerate(prompts)]
            params += [replace(own, max_tokens=3 + 2 * index, seed=99) for index, own in enumerate(params)]
        outputs = engine.generate(prompts, params)[: len(subjects)]
        engine.check_integrity()
        return sum(output.token_ids != subject.expected for output, subject in zip(outputs, subjects, strict=True))

    def _engine(
        self,
        *,
        loaded: Loaded | None = None,
        max_num_seqs: int = 64,
        max_num_batched_tokens: int = 512,
        enable_prefix_caching: bool = False,
    ) -> Engine:
        """A new engine over the same weights: it knows nothing of what ran before."""
        config = EngineConfig(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            enable_prefix_caching=enable_prefix_caching,
        )
        loaded = loaded or self._loaded
        return Engine(config, runner=loaded.runner, tokenizer=loaded.tokenizer)


def mixed_params(index: int, *, max_tokens: int) -> SamplingParams:
    """Greedy and seeded sampling in turn; the seed is set for both, so that n > 1 has one to derive from."""
    if index % 2 == 0:
        return SamplingParams(temperature=0.0, max_tokens=max_tokens, seed=index)
    return SamplingParams(temperature=0.8, top_p=0.95, max_tokens=max_tokens, seed=index)
