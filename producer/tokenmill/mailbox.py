"""Dead letters of a queue, and how what they tell of is asked again. Blocking; knows no command line and no page."""

from collections.abc import Sequence
from itertools import count
from typing import Any, TypeVar

from tokenmill.client import Client
from tokenmill.partitions import Partitions
from tokenmill.wire.errors import ConflictError, DecodeError, InvalidRequestError
from tokenmill.wire.keys import Keys
from tokenmill.wire.store import Operation, Store, connect
from tokenmill.wire.store.letters import DeadLetter, count_letters, find_body, read_letters, remove_letters, server_time

T = TypeVar("T")


class Mailbox:
    """The dead letters of one queue, of all its partitions."""

    def __init__(self, url: str, queue: str, partitions: int) -> None:
        parts = Partitions(queue, partitions, url=url)
        self._keys = [transitions.keys for transitions in parts.transitions]
        self._stores = parts.connect(lambda tag: Store(connect(url, key=tag)))
        self._stores[0].run(parts.transitions[0].agree())

    def letters(self, limit: int | None = None) -> list[DeadLetter]:
        """The newest first."""
        found = [letter for keys in self._keys for letter in self._run(keys, read_letters(keys, limit=limit))]
        return sorted(found, key=lambda letter: letter.sort_key, reverse=True)[:limit]

    def name(self, letter: DeadLetter) -> str:
        """An entry's id alone may stand in two partitions."""
        return letter.letter_id if len(self._keys) == 1 else f"{letter.partition}/{letter.letter_id}"

    def count(self) -> int:
        return sum(self._run(keys, count_letters(keys)) for keys in self._keys)

    def body(self, letter: DeadLetter) -> bytes | None:
        keys = self._keys[letter.partition]
        return self._run(keys, find_body(keys, letter))

    def remove(self, letters: Sequence[DeadLetter]) -> int:
        return sum(self._run(keys, remove_letters(keys, _ids_in(keys, letters))) for keys in self._keys)

    def now_ms(self) -> int:
        return self._run(self._keys[0], server_time())

    def _run(self, keys: Keys, operation: Operation[T]) -> T:
        return self._stores[keys.partition].run(operation)

    def __enter__(self) -> "Mailbox":
        return self

    def __exit__(self, *error: object) -> None:
        for store in self._stores:
            store.close()


def _ids_in(keys: Keys, letters: Sequence[DeadLetter]) -> list[str]:
    return [letter.letter_id for letter in letters if letter.partition == keys.partition]


def redrive(mailbox: Mailbox, client: Client, letter: DeadLetter) -> dict[str, str | None]:
    """What became of it: `new_id`, or why it is `kept`.

    Accepted first, deleted then: after a death in between, the next redrive finds its request there.
    """
    told: dict[str, str | None] = {"entry_id": mailbox.name(letter), "id": letter.request_id, "new_id": None}
    body = mailbox.body(letter)
    if body is None:
        return {**told, "kept": "it carries no request"}
    try:
        told["new_id"] = resubmit(client, letter.request_id, letter.arguments(body))
    except (DecodeError, InvalidRequestError) as error:
        return {**told, "kept": str(error)}
    mailbox.remove([letter])
    return told


def resubmit(client: Client, request_id: str, arguments: dict[str, Any]) -> str:
    """Submit again as `<id>~k`, k the first that is free or is this very request already; the new id."""
    for k in count(1):
        try:
            return client.submit(**{**arguments, "id": f"{request_id}~{k}"}).id
        except ConflictError:
            continue
    raise AssertionError("count never ends")
