"""A sample of the lost-reply sweep, on every change; `make chaos` sweeps all of it."""

from tests.chaos.sweep import LIVES, sample_cases, sweep


def test_every_invariant_holds_whichever_call_fails(redis_url: str) -> None:
    cases = sample_cases(20261123, 14)
    assert {case.life for case in cases} == set(LIVES)
    assert [(case, violations) for case, violations in sweep(redis_url, cases) if violations] == []
