"""Exit codes, and how errors become them: one clear line on stderr, no traceback for a user's mistake."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from inspect import cleandoc
from typing import NoReturn

import click

from tokenmill.wire.errors import InvalidRequestError, ResultTimeoutError, TokenmillError, UnavailableError


class Exit(IntEnum):
    """What a shell or a scheduler can act on. 2 is also what click says about a wrong option."""

    OK = 0
    FAILED = 1  # a request, a row or a check failed
    USAGE = 2  # the command, as it was given, cannot work
    NO_SERVER = 3  # no Redis or Valkey at the URL, or it went away
    TIMEOUT = 4  # not finished in the time allowed
    INTERRUPTED = 130  # Ctrl-C, as shells count it: 128 + SIGINT
    TERMINATED = 143  # SIGTERM: 128 + 15


EXIT_CODES = "0 done, 1 failed, 2 wrong usage, 3 no server, 4 timed out, 130 interrupted, 143 terminated"


class Terminated(KeyboardInterrupt):
    """SIGTERM, told like Ctrl-C, so that what cleans up after one cleans up after both."""


def fail(message: str, code: Exit = Exit.FAILED) -> NoReturn:
    """Ends the command with one line on stderr."""
    click.echo(f"tokenmill: {' '.join(message.split())}", err=True)
    raise click.exceptions.Exit(code)


def code_of(error: TokenmillError) -> Exit:
    if isinstance(error, InvalidRequestError):
        return Exit.USAGE
    if isinstance(error, UnavailableError):
        return Exit.NO_SERVER
    return Exit.TIMEOUT if isinstance(error, ResultTimeoutError) else Exit.FAILED


def with_exit_codes(text: str, codes: str = EXIT_CODES) -> str:
    """A command's help with its exit codes below it."""
    return f"{cleandoc(text)}\n\nExit codes: {codes}."


@contextmanager
def errors_as_exits() -> Iterator[None]:
    """Inside, our own errors, the server's refusals and Ctrl-C end the command with their exit code."""
    from redis import RedisError  # here, so that `--help` does not load it

    try:
        yield
    except TokenmillError as error:
        fail(str(error), code_of(error))
    except RedisError as error:  # a permission that is missing, a key of another type: not ours to mend
        fail(f"the server refuses: {error} (tokenmill doctor may know more)")
    except Terminated:
        fail("terminated", Exit.TERMINATED)
    except KeyboardInterrupt:
        fail("interrupted", Exit.INTERRUPTED)
