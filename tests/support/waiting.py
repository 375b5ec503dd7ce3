"""Waiting for a condition, never for a time."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

POLL_S = 0.01


def wait_until(predicate: Callable[[], T], *, description: str, timeout: float = 20.0) -> T:
    """The first true answer of `predicate`; fails with the description when none comes within `timeout` seconds."""
    give_up_at = time.monotonic() + timeout
    while not (answer := predicate()):
        if time.monotonic() > give_up_at:
            raise AssertionError(f"waited {timeout:g} s in vain until {description}")
        time.sleep(POLL_S)
    return answer
