"""Measures, at the start, how long this runner's steps take: real steps over synthetic tokens in pages nobody holds.

Takes a few seconds and is kept in the cache folder, so that a warm start pays nothing. Knows no scheduler.
"""

import hashlib
import json
import logging
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import count, takewhile
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np

from tokenmill_worker.engine.api import EngineConfig, SamplingParams
from tokenmill_worker.engine.batch import PAGE_SIZE, Ints, PackedBatch, Runner, SampleRow
from tokenmill_worker.engine.cost_model import CostCurve, StepShape, fit
from tokenmill_worker.engine.threads import usable_cores

BUDGET_S = 2.5  # no measurement begins later; one that runs is waited for
NUM_ROUNDS = 3  # the first warms up
CONTEXTS = (32, 256)  # stored tokens of each decoding row
STORED_TOKENS = 8192  # at most so many are filled to be attended to: memory that the pool would take anyway
COPIED_PAGES = 64  # at once: what a copy takes for the moment
FORMAT = 1  # of the file; raise it when an older one must not be read again
GREEDY = SamplingParams(temperature=0.0)
UNTOUCHED = {"model", "cache_dir", "kv_cache_tokens", "target_tpot_ms", "target_ttft_ms", "scheduling_interval"}

_NOTHING: Ints = np.zeros(0, dtype=np.int32)
_logger = logging.getLogger(__name__)


class Probe(NamedTuple):
    """A step to time: `num_rows` rows, each with `num_stored` tokens before its `num_tokens` new ones."""

    num_rows: int
    num_tokens: int
    num_stored: int

    @property
    def shape(self) -> StepShape:
        total = self.num_rows * self.num_tokens
        if self.num_tokens == 1:
            return StepShape(total, self.num_rows, self.num_rows * (self.num_stored + 1), 0)
        pairs = self.num_tokens * self.num_stored + self.num_tokens * (self.num_tokens + 1) // 2
        return StepShape(total, self.num_rows, 0, self.num_rows * pairs)


def calibrated(
    config: EngineConfig,
    runner: Runner,
    computing: Mapping[str, str],
    run: Callable[[PackedBatch], object],
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> CostCurve:
    """Of an earlier start, or measured now. `run` runs one batch to its end, as the engine's steps do."""
    path = config.cache_folder / "step-times" / f"{_key(config, runner, computing)}.json"
    curve = _read(path)
    if curve is None:
        curve = measure(config, runner, run, clock=clock)
        _write(path, curve)
    return curve


def measure(
    config: EngineConfig,
    runner: Runner,
    run: Callable[[PackedBatch], object],
    *,
    clock: Callable[[], float] = time.perf_counter,
    budget_s: float = BUDGET_S,
) -> CostCurve:
    """From the small to the large, several times over, until the time is up: the smallest is always measured."""
    probes = list(_probes(config, runner))
    times: dict[Probe, list[float]] = {}
    give_up_s = clock() + budget_s
    for batch in _filling(max(probe.num_rows * _pages(probe) for probe in probes), runner):
        run(batch)
    for probe in probes * NUM_ROUNDS:
        if times and clock() >= give_up_s:
            break
        batch = _batch(probe, runner)
        started_s = clock()
        run(batch)
        times.setdefault(probe, []).append(max(clock() - started_s, 1e-9))
    return fit([probe.shape for probe in times], [median(found[1:] or found) for found in times.values()])


def _probes(config: EngineConfig, runner: Runner) -> Iterator[Probe]:
    """Decoding rows, prompts and chunks of prompts, such that they fit the pool and the model."""
    max_tokens = min(config.max_num_batched_tokens, (runner.num_pages - 1) * PAGE_SIZE, runner.max_model_len - 1)
    max_rows = min(config.max_num_seqs, config.max_num_batched_tokens, runner.num_pages)
    wanted = [Probe(rows, 1, context) for rows in _sizes(1, max_rows) for context in CONTEXTS]
    wanted += [Probe(1, tokens, context) for tokens in _sizes(16, max_tokens) for context in (0, CONTEXTS[-1])]
    for probe in sorted(wanted, key=lambda one: one.num_rows * one.num_tokens):
        num_stored = _num_stored(probe, runner)
        if num_stored is not None:
            yield probe._replace(num_stored=num_stored)


def _sizes(least: int, most: int) -> list[int]:
    """Doubling, and the largest itself."""
    return [*takewhile(lambda size: size < most, (least << power for power in count())), max(1, most)]


def _num_stored(probe: Probe, runner: Runner) -> int | None:
    """As much of the context as there is room for; None: it does not fit at all."""
    num_pages = min(runner.num_pages, STORED_TOKENS // PAGE_SIZE) // probe.num_rows or 1
    room = min(num_pages * PAGE_SIZE, runner.max_model_len) - probe.num_tokens
    return min(probe.num_stored, room) if room >= 0 else None


def _pages(probe: Probe) -> int:
    """Of each of its rows."""
    return -(-(probe.num_stored + probe.num_tokens) // PAGE_SIZE)


def _filling(num_pages: int, runner: Runner) -> Iterator[PackedBatch]:
    """Steps that touch every page to be read: memory that was never written to costs less to read than it should."""
    first = _batch(Probe(1, min(PAGE_SIZE, runner.max_model_len - 1), 0), runner)
    yield first
    for start in range(1, num_pages, COPIED_PAGES):
        yield replace(first, page_copies=[(0, page) for page in range(start, min(start + COPIED_PAGES, num_pages))])


def _batch(probe: Probe, runner: Runner) -> PackedBatch:
    rows, num_pages = np.arange(probe.num_rows), _pages(probe)
    own = np.arange(probe.num_stored, probe.num_stored + probe.num_tokens)
    slots = rows[:, None] * num_pages * PAGE_SIZE + own
    return PackedBatch(
        token_ids=((slots.ravel() * 7 + 1) % runner.vocab_size).astype(np.int32),
        positions=np.tile(own, probe.num_rows).astype(np.int32),
        slots=slots.ravel().astype(np.int32),
        row_starts=_starts(probe.num_rows, probe.num_tokens),
        context_lens=np.full(probe.num_rows, probe.num_stored + probe.num_tokens, dtype=np.int32),
        page_ids=np.arange(probe.num_rows * num_pages, dtype=np.int32),
        page_starts=_starts(probe.num_rows, num_pages),
        samples=[SampleRow(row, GREEDY, row, 0, _NOTHING, _NOTHING) for row in range(probe.num_rows)],
    )


def _starts(num: int, length: int) -> Ints:
    starts: Ints = (np.arange(num + 1) * length).astype(np.int32)
    return starts


# What was measured before


def _key(config: EngineConfig, runner: Runner, computing: Mapping[str, str]) -> str:
    """Of everything that a step's time depends on."""
    model = config.model if runner.fingerprint.startswith("echo") else runner.fingerprint
    facts = {
        "format": FORMAT,
        "model": model,
        "device": _device_name(runner.device),
        "threads": config.num_threads or usable_cores(),
        "computing": dict(computing),
        "settings": {name: value for name, value in asdict(config).items() if name not in UNTOUCHED},
        "versions": {name: _version(name) for name in ("tokenmill", "torch", "transformers")},
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        import torch  # a runner on such a device has imported it

        return torch.cuda.get_device_name(device)
    lines = _lines(Path("/proc/cpuinfo"))
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _lines(path: Path) -> Sequence[str]:
    return path.read_text("utf-8", "replace").splitlines() if path.exists() else ()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _read(path: Path) -> CostCurve | None:
    """None: there is none, or none that can be used."""
    try:
        return CostCurve.from_dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _write(path: Path, curve: CostCurve) -> None:
    """Whole or not at all: another worker may be reading."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
            json.dump(curve.to_dict(), file)
        os.replace(file.name, path)
    except OSError as error:
        _logger.warning("Step times cannot be kept in %s (%s): each start measures again", path.parent, error.strerror)
