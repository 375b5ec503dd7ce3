"""What a user should know of the queue before a command waits on it. Knows the queue's statistics."""

import click

from tokenmill.wire.store import QueueStatistics


def warn_when_nobody_works(statistics: QueueStatistics) -> None:
    """One line on stderr: a command that waits for a worker looks like one that hangs."""
    if not statistics.workers:
        message = f"tokenmill: no worker on queue {statistics.queue!r} yet: waiting for one (tokenmill worker)"
        click.echo(message, err=True)


def lacks_chat_template(statistics: QueueStatistics) -> bool:
    """A worker says that its model has no chat template; False while nobody says anything."""
    return any(worker.info.get("has_chat_template") == "false" for worker in statistics.workers)
