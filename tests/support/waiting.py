"""Waiting for a condition with a deadline and a description, instead of sleeping and hoping."""

import time
from collections.abc import Callable


def wait_until(predicate: Callable[[], object], *, description: str, timeout: float = 10.0) -> None:
    """Returns once `predicate()` is true; AssertionError with the description when that takes too long."""
    deadline = time.monotonic() + timeout
    while not predicate():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout:g} s in vain: {description}")
        time.sleep(0.005)
