"""What a point should do, by a cost model of steps that were timed: it decides what is looked at, not what wins.

The sweep over rows has timed steps of many sizes. Fitted, they tell the time of a step of any size, and so the rate of
any combination: rows that decode in each step, and the newcomers' prompts that come along at each admission. Pure.
"""

from collections.abc import Callable, Sequence

from tokenmill_worker.engine.cost_model import CostCurve, StepShape, fit
from tokenmill_worker.tune.space import Point
from tokenmill_worker.tune.window import Step

FEWEST_STEPS = 50  # to learn from
Expect = Callable[[Point], float]  # output tokens a second


def expectation(steps: Sequence[Step], *, mean_prompt: float, mean_output: float) -> Expect | None:
    """None where too few steps were timed to tell anything."""
    if len(steps) < FEWEST_STEPS:
        return None
    mean_context = mean_prompt + mean_output / 2
    shapes = [_shape(step.num_decode_tokens, step.num_prefill_tokens, mean_context) for step in steps]
    curve = fit(shapes, [max(step.seconds, 1e-9) for step in steps])
    return lambda point: expected_rate(point, curve, mean_prompt=mean_prompt, mean_output=mean_output)


def expected_rate(point: Point, curve: CostCurve, *, mean_prompt: float, mean_output: float) -> float:
    """Of a closed loop. A freed row stands empty until the next admission; what a step has no room for waits."""
    interval = point.scheduling_interval
    num_rows = point.max_num_seqs * mean_output / (mean_output + (interval - 1) / 2)
    num_prefill = interval * num_rows / mean_output * mean_prompt  # of one admission
    room = point.max_num_batched_tokens - num_rows
    context = mean_prompt + mean_output / 2
    with_newcomers_s = curve.predict(_shape(num_rows, min(num_prefill, room), context))
    plain_s = curve.predict(_shape(num_rows, 0, context))
    rate = interval * num_rows / (with_newcomers_s + (interval - 1) * plain_s)
    return rate * min(1.0, room / num_prefill)


def _shape(num_decode: float, num_prefill: float, mean_context: float) -> StepShape:
    """Rows that draw and what they attend to go with the decoding ones; the pairs of short prompts are nothing."""
    return StepShape(round(num_decode + num_prefill), round(num_decode), round(num_decode * mean_context), 0)
