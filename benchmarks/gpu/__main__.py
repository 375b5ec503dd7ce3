"""One command for one GPU: bounds, decode, a job beside transformers, latency. `python -m benchmarks.gpu`

`--device cpu --shapes tiny` runs every line of it on a machine without one; its figures mean nothing.

Caveats: weights are random, so texts are noise and no request ends early; prompts are of one length and share nothing;
the rivals run with their defaults. A step's bound counts linears and attention alone (bounds.py).
"""

import argparse
import gc
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenmill_worker.engine import EngineConfig
from transformers import PreTrainedModel

from benchmarks.gpu import bounds, ours, rivals, shapes
from benchmarks.gpu.shapes import Plan
from benchmarks.report import RESULTS, print_json

ROOM = 160  # tokens of a row beyond its prompt, for the steps that are timed


class Bench:
    """Figures gather in `figures`; each part is independent, so one that fails is told and the next one runs."""

    def __init__(self, plan: Plan, config: EngineConfig, device: torch.device, dtype: torch.dtype) -> None:
        self._plan, self._config, self._device, self._dtype = plan, config, device, dtype
        self.figures: dict[str, Any] = {"roofline_fraction": {}, "decode": {}, "failed": {}}

    def run(self, parts: Sequence[str]) -> None:
        self._machine = bounds.measure(self._device, self._dtype, is_small=self._device.type != "cuda")
        gb, tflop = self._machine.bytes_per_s / 1e9, self._machine.flop_per_s / 1e12
        self.figures["measured_bounds"] = {"copy_gb_per_s": round(gb, 1), "gemm_tflop_per_s": round(tflop, 2)}
        print(f"copy {gb:.0f} GB/s, GEMM {tflop:.1f} TFLOP/s", flush=True)
        every: dict[str, Callable[[], None]] = {
            "decode": self._decode,
            "job": self._job,
            "latency": self._latency,
            "steps": self._steps,
        }
        for part in parts:
            self._try(part, every[part])

    def _try(self, part: str, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # what was measured before must be kept
            self.figures["failed"][part] = f"{type(error).__name__}: {error}"
            print(f"{part} FAILED: {self.figures['failed'][part]}", flush=True)
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _model(self, name: str) -> PreTrainedModel:
        return shapes.make_model(self._plan.shapes[name], device=self._device, dtype=self._dtype)

    def _decode(self) -> None:
        for name, points in self._plan.decode.items():
            for batch, context in points:
                self._try(f"decode {name} {batch}", partial(self._decode_at, name, batch, context))

    def _decode_at(self, name: str, batch: int, context: int) -> None:
        model = self._model(name)
        bound_s = bounds.decode_bound_s(model, self._machine, batch=batch, context=context)
        engine = ours.engine_of(
            model, ours.with_rows(self._config, batch), max_model_len=context + self._plan.num_steps + ROOM
        )
        work = ours.prompts(batch, context, self._plan.shapes[name].config.vocab_size)
        measured = ours.decode(engine, work, num_steps=self._plan.num_steps, device=self._device)
        key = f"{name}_batch{batch}_ctx{context}"
        fraction = round(bound_s / measured.step_s, 4)
        self.figures["roofline_fraction"][key] = fraction
        self.figures["decode"][key] = {
            "tokens_per_s": round(batch / measured.step_s, 1),
            "step_ms": round(1e3 * measured.step_s, 4),
            "bound_ms": round(1e3 * bound_s, 4),
            "idle_fraction": measured.idle_fraction,
        }
        print(f"{key:<28}{batch / measured.step_s:>10.0f} tok/s  {fraction:>7.1%} of the bound", flush=True)

    def _job(self) -> None:
        """Ours first; its model is given up before the rivals' is made, so that both have the device for themselves."""
        num, length, num_tokens = self._plan.job
        work = ours.prompts(num, length, self._plan.shapes["8b"].config.vocab_size)
        rates: dict[str, Any] = {"ours": self._our_rate(work, num_tokens)}
        gc.collect()
        model = self._model("8b")
        rates |= {name: rivals.rate(rival, model, work, num_tokens) for name, rival in rivals.RIVALS.items()}
        self.figures["job"] = {
            name: round(rate, 1) if isinstance(rate, float) else rate for name, rate in rates.items()
        }
        for name, rate in self.figures["job"].items():
            print(f"job {num} x {length} in, {num_tokens} out: {name:<36}{rate}", flush=True)

    def _our_rate(self, work: Sequence[list[int]], num_tokens: int) -> float:
        config = ours.with_rows(self._config, len(work))
        engine = ours.engine_of(self._model("8b"), config, max_model_len=len(work[0]) + num_tokens + 1)
        return ours.job(engine, work, num_tokens)

    def _latency(self) -> None:
        _, length, num_tokens = self._plan.job
        config = ours.with_rows(self._config, max(self._plan.in_flight))
        engine = ours.engine_of(self._model("8b"), config, max_model_len=length + num_tokens + 1)
        vocab_size = self._plan.shapes["8b"].config.vocab_size
        self.figures["latency"] = {}
        for num in self._plan.in_flight:
            work = ours.prompts(num, length, vocab_size)
            ours.latency(engine, work, min(4, num_tokens))
            self.figures["latency"][f"{num}_in_flight"] = ours.latency(engine, work, num_tokens)
            print(f"{num} in flight: {self.figures['latency'][f'{num}_in_flight']}", flush=True)

    def _steps(self) -> None:
        """Small models wait for launches, not for memory."""
        rows, context = self._plan.step_rows, self._plan.job[1]
        config = ours.with_rows(self._config, rows)
        engine = ours.engine_of(self._model("smollm2"), config, max_model_len=context + self._plan.num_steps + ROOM)
        work = ours.prompts(rows, context, self._plan.shapes["smollm2"].config.vocab_size)
        measured = ours.decode(engine, work, num_steps=self._plan.num_steps, device=self._device)
        key = f"smollm2_steps_per_s_{rows}_rows"
        self.figures[key] = round(1 / measured.step_s, 1)
        print(f"{key}: {self.figures[key]}", flush=True)


def device_name(device: torch.device) -> str:
    """As result files have it: h200, not `NVIDIA H200`."""
    if device.type != "cuda":
        return "cpu"
    return torch.cuda.get_device_name(device).removeprefix("NVIDIA ").split()[0].lower()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--shapes", default="full", choices=("full", "tiny"))
    parser.add_argument("--tier", type=int, default=0, choices=(0, 1))
    parser.add_argument("--max-num-batched-tokens", type=int, default=8192)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=JSON", help="any field of EngineConfig")
    parser.add_argument("--parts", nargs="+", default=["decode", "job", "latency", "steps"])
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results file")
    args = parser.parse_args(arguments)

    device, plan = torch.device(args.device), getattr(shapes, args.shapes)()
    settings = {"tier": args.tier, "max_num_batched_tokens": args.max_num_batched_tokens, "overlap": True}
    settings |= {name: json.loads(value) for name, _, value in (text.partition("=") for text in args.set)}
    if device.type == "cpu":
        settings.setdefault("kv_cache_tokens", 4096)
    config = EngineConfig(enable_prefix_caching=False, **settings)
    bench = Bench(plan, config, device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    bench.run(args.parts)
    name = f"gpu_{args.shapes}_{device_name(device)}_{time.strftime('%Y-%m-%d')}"
    line = print_json(name, bench.figures, {**settings, "shapes": args.shapes, "device": device_name(device)})
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"{name}.json").write_text(line + "\n")


if __name__ == "__main__":
    main()
