"""`tokenmill worker` with its threads named for the kernel, so that /proc tells what each of them costs. Linux."""

from pathlib import Path

from tokenmill.cli import main
from tokenmill_worker.queue.service import Service

COMM_LENGTH = 15  # the kernel cuts a thread's name there


def name_threads() -> None:
    """Every service writes its name before it runs."""
    run = Service._main

    def run_named(service: Service) -> None:
        Path("/proc/thread-self/comm").write_text(service.name[:COMM_LENGTH])
        run(service)

    setattr(Service, "_main", run_named)  # noqa: B010 (mypy takes no assignment to a method; the worker needs no names)


if __name__ == "__main__":
    name_threads()
    main()
