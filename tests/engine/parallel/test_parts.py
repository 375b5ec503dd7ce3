"""What can be said without a second process: the message, the refusals, the follower's error."""

import numpy as np
import pytest
from tokenmill_worker.engine import echo, guard
from tokenmill_worker.engine.adapter import Adapter
from tokenmill_worker.engine.api import EngineConfig, ModelError
from tokenmill_worker.engine.attention.reference import ReferenceBackend
from tokenmill_worker.engine.batch import PackedBatch
from tokenmill_worker.engine.parallel.message import ARRAYS, Step, decode, encode
from tokenmill_worker.engine.parallel.sharding import placement

from tests.engine.models.tiny import PACKABLE, make_model


def test_a_step_survives_the_wire() -> None:
    arrays = {name: np.arange(index + 1, dtype=np.int32) for index, name in enumerate(ARRAYS)}
    copies = [(3, 4), (5, 6)]
    batch = PackedBatch(**arrays, page_copies=copies)  # type: ignore[arg-type]  # the arrays, by name
    step = decode(encode(Step(batch, np.array([7, 8], dtype=np.int32))))
    for name, array in arrays.items():
        np.testing.assert_array_equal(getattr(step.batch, name), array)
    assert list(step.batch.page_copies) == copies
    assert step.keep.tolist() == [7, 8]


def test_a_step_without_copies_and_samples_survives_the_wire() -> None:
    arrays = {name: np.arange(2, dtype=np.int32) for name in ARRAYS}
    step = decode(encode(Step(PackedBatch(**arrays), np.zeros(0, dtype=np.int32))))  # type: ignore[arg-type]  # as above
    assert (list(step.batch.page_copies), step.keep.tolist()) == ([], [])


def test_heads_that_do_not_divide_are_refused_with_the_sizes_that_work() -> None:
    with pytest.raises(ModelError, match=r"4 query heads and 2 key/value heads .* one of 1, 2$"):
        placement(PACKABLE["llama"](), 4)


def test_a_model_without_a_plan_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match="no tensor parallel plan for gpt2"):
        placement(PACKABLE["gpt2"](), 2)


def test_a_model_that_its_plan_makes_another_one_is_refused() -> None:
    """Whatever a wrong plan does to the logits: here, those of other weights."""
    model, other = make_model(PACKABLE["llama"]()), make_model(PACKABLE["llama"]())
    truth = guard.check(Adapter(model, ReferenceBackend()), window=None, longest=100)
    guard.check_sharded(truth, other)
    for parameter in other.parameters():
        parameter.data.mul_(1.05)
    with pytest.raises(ModelError, match="transformers' plan does not fit it; set tensor_parallel_size to 1"):
        guard.check_sharded(truth, other)


def test_the_echo_model_cannot_be_shared() -> None:
    with pytest.raises(ModelError, match="tensor_parallel_size to 1"):
        echo.load(EngineConfig(model="echo", tensor_parallel_size=2))
