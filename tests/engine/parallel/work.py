"""The same work by one process or by several that share the model, forked here; rank 0 writes down the answers.

    python -m tests.engine.parallel.work RESULT SIZE FOLDER [FOLDER ...]

Importing what they need takes longer than the work, so it is done once, before they part.
"""

import contextlib
import itertools
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tokenmill_worker.engine import loading
from tokenmill_worker.engine.api import EngineConfig, EngineRequest, ModelLostError, SamplingParams
from tokenmill_worker.engine.batch import Ints
from tokenmill_worker.engine.engine import Engine
from tokenmill_worker.engine.parallel import runner
from tokenmill_worker.engine.parallel.message import Step, decode

from tests.engine.harness import finish

PREFIX = [(11 * index) % 120 + 3 for index in range(56)]  # a page, and most of another
GREEDY = SamplingParams(temperature=0.0, max_tokens=16, ignore_eos=True)

Answers = dict[str, object]  # as JSON has them


def config(folder: Path, num_processes: int) -> EngineConfig:
    """24 tokens a step, so that prompts come in chunks; and few pages."""
    return EngineConfig(
        model=str(folder),
        dtype="float32",
        device="cpu",
        max_num_seqs=6,
        max_num_batched_tokens=24,
        kv_cache_tokens=224,
        attention_backend="sdpa",
        num_threads=1,
        tensor_parallel_size=num_processes,
    )


def requests() -> list[EngineRequest]:
    """Greedy and seeded rows that begin alike, one of them with two choices and logprobs."""
    drawn = SamplingParams(temperature=0.9, top_p=0.95, max_tokens=16, ignore_eos=True, seed=5)
    params = [GREEDY, drawn, GREEDY, SamplingParams(max_tokens=16, n=2, logprobs=2, ignore_eos=True), drawn, GREEDY]
    return [
        EngineRequest(request_id=f"r{index}", prompt_token_ids=[*PREFIX, *range(3, 4 + index)], params=own)
        for index, own in enumerate(params)
    ]


def answers(folder: Path, num_processes: int) -> Answers:
    """What everybody was told, and whether the engine had to work for it."""
    engine = Engine(config(folder, num_processes))
    outputs = finish(engine, *requests())
    disturbed = _disturbed(engine)
    statistics = engine.statistics()
    engine.close()
    return {
        "tokens": {name: [choice.token_ids for choice in own.choices] for name, own in outputs.items()},
        "disturbed": disturbed,
        "fingerprint": engine.fingerprint,
        "was preempted": statistics.num_preemptions > 0,
        "had prefix hits": statistics.num_cached_tokens > 0,
        "tensor_parallel_size": engine.computing["tensor_parallel_size"],
    }


def _disturbed(engine: Engine) -> dict[str, list[int]]:
    """The tokens of two requests; after some steps both are preempted, and then one is cancelled."""
    told: dict[str, list[int]] = {"stays": [], "leaves": []}
    for name in told:
        engine.add_request(EngineRequest(request_id=name, prompt_token_ids=PREFIX[:9], params=GREEDY))
    num_steps = 0
    while engine.has_work():
        for event in engine.step():
            told[event.request_id] += event.token_ids
        engine.check_integrity()
        num_steps += 1
        if num_steps == 5:
            for sequence in list(engine._scheduler.running):
                engine._scheduler.preempt(sequence)
        if num_steps == 9:
            engine.cancel("leaves")
    return told


def lost_amid(folder: Path, num_processes: int) -> Answers:
    """What rank 0 says when another is killed between two steps. That one does not return."""
    vars(runner)["decode"] = _killed_after(5)  # of the ranks that follow
    engine = Engine(config(folder, num_processes))
    try:
        finish(engine, *requests())
    except ModelLostError as error:
        return {"error": str(error)}
    return {"error": None}


def _killed_after(num_steps: int) -> Callable[[Ints], Step]:
    """Decodes so many steps' messages; the next one kills this process."""
    calls = itertools.count()

    def decode_a_few(message: Ints) -> Step:
        if next(calls) == num_steps:
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(message)

    return decode_a_few


class Heard(logging.Handler):
    """What was logged of how the model is shared."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        loading._logger.addHandler(self)
        loading._logger.setLevel(logging.INFO)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def work(result: Path, num_processes: int, folders: Sequence[str]) -> None:
    found: dict[str, Answers] = {}
    heard = Heard()
    for folder in folders:
        with contextlib.suppress(SystemExit):  # this process followed; the next model is next
            found[folder] = answers(Path(folder), num_processes)
    found["lost"] = lost_amid(Path(folders[0]), num_processes)
    found["logged"] = {"lines": heard.lines}
    result.write_text(json.dumps(found))


def main(result: Path, num_processes: int, folders: Sequence[str]) -> None:
    """The variables are those of torchrun. Rank 0's end is everybody's: the one that was killed cannot say so."""
    torch.set_num_threads(1)
    os.environ |= {"WORLD_SIZE": str(num_processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    for rank in range(1, num_processes):
        if not os.fork():
            os.environ["RANK"] = str(rank)
            work(result, num_processes, folders)
            return
    os.environ["RANK"] = "0"
    work(result, num_processes, folders)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
