"""`make chaos`: the campaign and the checker's verdict. Exit 1 when an invariant is broken; the history is kept."""

import argparse
import logging
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.campaign import FULL, PARTED, SHORT, Outcome, Scale, run_campaign
from tests.chaos.sweep import all_cases, count_calls, sweep
from tests.support.checker import RULES, Violation, check
from tests.support.history import History
from tests.support.servers import running_server

DEFAULT_SEED = 20261123
MAX_SHOWN = 10  # violations of one invariant


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED)
    parser.add_argument("--short", action="store_true", help="the campaign that the test suite runs")
    parser.add_argument("--parted", action="store_true", help="the campaign over several partitions alone")
    parser.add_argument("--sweep", action="store_true", help="the lost-reply sweep alone")
    parser.add_argument("--history", type=Path, help="check a history that was kept, run nothing")
    options = parser.parse_args()
    if options.history:
        return report(History.load(options.history))
    if options.sweep:
        return sweep_all()
    if options.short or options.parted:
        return run(options.seed, SHORT if options.short else PARTED)
    return run(options.seed, FULL) | run(options.seed, PARTED) | sweep_all()


def run(seed: int, scale: Scale) -> int:
    started_s = time.monotonic()
    outcome = run_campaign(seed, scale, say)
    say(f"\nseed {seed}, {scale.partitions} partitions, {time.monotonic() - started_s:.0f} s")
    show_counts(outcome)
    return report(outcome.history)


def sweep_all() -> int:
    """Every server call of a request's life, failing before and after it."""
    started_s = time.monotonic()
    logging.getLogger("tokenmill_worker").setLevel(logging.CRITICAL)
    with running_server() as server:
        cases = list(all_cases(count_calls(server.tcp_url)))
        broken = [(case, violations) for case, violations in sweep(server.tcp_url, cases, num_threads=8) if violations]
    say(f"\nlost-reply sweep: {len(cases)} cases, {len(broken)} broken, {time.monotonic() - started_s:.0f} s")
    for case, violations in broken[:MAX_SHOWN]:
        say(f"      {case}: {violations}")
    return 1 if broken else 0


def report(history: History) -> int:
    """The verdict, invariant by invariant."""
    violations = check(history)
    for invariant, rule in RULES.items():
        broken = [violation for violation in violations if violation.invariant == invariant]
        say(f"{invariant}  {'holds' if not broken else f'BROKEN {len(broken)} times'}  {_first_line(rule)}")
        for violation in broken[:MAX_SHOWN]:
            say(f"      {violation.subject}: {violation.what}")
    if violations:
        keep(history, violations)
    return 1 if violations else 0


def keep(history: History, violations: list[Violation]) -> None:
    path = Path(tempfile.mkdtemp(prefix="tokenmill-history-")) / "history.jsonl"
    history.dump(path)
    say(f"{len(violations)} violations; the history is in {path}")


def show_counts(outcome: Outcome) -> None:
    for name, count in sorted(outcome.counts.items()):
        say(f"{count:8}  {name}")
    effort = outcome.history.effort
    told = sum(int(job.fields.get("published") or 0) for job in outcome.history.jobs.values())
    most = effort.num_losses * effort.num_rows * effort.window + effort.num_aside
    say(f"{told:8}  tokens told; {effort.num_computed - told} computed again, at most {most} may be")


def _first_line(rule: object) -> str:
    return (rule.__doc__ or "").splitlines()[0].partition(": ")[2]


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
