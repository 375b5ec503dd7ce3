"""`tokenmill dead`: what is shown of a dead letter, how it is asked again, and what it takes to throw it away."""

import json
from collections.abc import Callable

import pytest
from click.testing import CliRunner, Result
from tokenmill.cli.group import main
from tokenmill.client import Client
from tokenmill.wire.keys import Keys, Lane
from tokenmill.wire.messages import Request
from tokenmill.wire.store import Store

from tests.contract.test_letters import add_letter
from tests.e2e.commands import tokenmill

BODY = Request.build(prompt="a private question", max_tokens=4).encode()

Dead = Callable[..., Result]


@pytest.fixture
def dead(redis_url: str, queue: str) -> Dead:
    """Runs a subcommand in this process: a new one for each would take a second of the suite's time."""

    def run(subcommand: str, *arguments: str, **options: str) -> Result:
        where = ["--redis", redis_url, "--queue", queue]
        return CliRunner().invoke(main, ["dead", subcommand, *where, *arguments], **options)  # type: ignore[arg-type]  # only `input`

    return run


def letters_of(dead: Dead, *arguments: str) -> list[dict[str, object]]:
    letters: list[dict[str, object]] = json.loads(dead("list", "--json", *arguments).stdout)["letters"]
    return letters


def test_list_shows_why_and_how_much_but_not_what_was_asked(dead: Dead, store: Store, keys: Keys) -> None:
    letter_id = add_letter(store, keys, body=BODY)
    answer = dead("list")
    assert answer.exit_code == 0
    for shown in (letter_id, "q-1", "lane 0", f"{len(BODY)} bytes", "worker_crashed"):
        assert shown in answer.stdout
    assert "private" not in answer.stdout
    assert "private" not in dead("list", "--json").stdout
    assert "private" in dead("list", "--show-body").stdout


def test_list_says_what_it_leaves_out(dead: Dead, store: Store, keys: Keys) -> None:
    ids = [add_letter(store, keys) for _ in range(3)]
    assert [letter["entry_id"] for letter in letters_of(dead, "--limit", "2")] == [ids[2], ids[1]]
    assert "1 older" in dead("list", "--limit", "2").stdout


def test_list_prints_no_control_characters_of_a_producer(dead: Dead, store: Store, keys: Keys) -> None:
    add_letter(store, keys, reason="unknown field '\x1b[2J'")
    assert "\x1b" not in dead("list").stdout


@pytest.mark.usefixtures("worker")
def test_redrive_asks_again_under_a_new_id_and_the_answer_comes(
    redis_url: str, queue: str, store: Store, keys: Keys, client: Client
) -> None:
    letter_id = add_letter(store, keys, body=BODY)
    answer = tokenmill("dead", "redrive", letter_id, "--redis", redis_url, "--queue", queue)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert "q-1 -> q-1~1" in answer.stdout
    assert client.job("q-1~1").result(timeout=30).usage.completion_tokens == 4
    assert store.client.xlen(keys.dead) == 0


def test_redrive_takes_the_first_id_that_is_free(dead: Dead, store: Store, keys: Keys, client: Client) -> None:
    client.submit("something else", id="q-1~1")
    add_letter(store, keys, body=BODY)
    assert "q-1 -> q-1~2" in dead("redrive", "--all").stdout
    assert client.job("q-1~2").status() == "queued"


def test_redrive_again_after_dying_before_the_letter_was_deleted_makes_no_second_request(
    dead: Dead, store: Store, keys: Keys
) -> None:
    for _ in range(2):  # the second time the letter stands there as if it had never been deleted
        add_letter(store, keys, body=BODY)
        assert "q-1 -> q-1~1" in dead("redrive", "--all").stdout
    assert store.client.xlen(keys.lane(Lane.NORMAL)) == 1
    assert store.client.xlen(keys.dead) == 0


def test_redrive_leaves_a_letter_without_a_request_and_says_so(dead: Dead, store: Store, keys: Keys) -> None:
    broken = add_letter(store, keys, **{"reason": "body is not JSON", "id": "2-5-0", "field:body": "{oops"})
    add_letter(store, keys, body=BODY)
    answer = dead("redrive", "--all")
    assert answer.exit_code == 1
    assert f"{broken}  2-5-0 stays: it carries no request" in answer.stdout
    assert "q-1 -> q-1~1" in answer.stdout
    assert [letter["entry_id"] for letter in letters_of(dead)] == [broken]


def test_redrive_by_reason_takes_only_those(dead: Dead, store: Store, keys: Keys) -> None:
    add_letter(store, keys, body=BODY, id="a")
    add_letter(store, keys, body=BODY, id="b", reason="conflict")
    assert "b -> b~1" in dead("redrive", "--reason", "conf").stdout
    assert [letter["id"] for letter in letters_of(dead)] == ["a"]


@pytest.mark.parametrize("subcommand", ["redrive", "purge"])
def test_nothing_is_done_to_letters_that_nobody_named(dead: Dead, store: Store, keys: Keys, subcommand: str) -> None:
    add_letter(store, keys, body=BODY)
    assert dead(subcommand).exit_code == 2
    assert dead(subcommand, "1-1").exit_code == 1
    assert dead(subcommand, "1-1", "--all").exit_code == 2
    assert store.client.xlen(keys.dead) == 1


def test_purge_asks_first(dead: Dead, store: Store, keys: Keys) -> None:
    letter_id = add_letter(store, keys)
    assert dead("purge", "--all", input="n\n").exit_code == 1
    assert dead("purge", "--all", input="").exit_code == 1
    assert store.client.xlen(keys.dead) == 1
    assert dead("purge", letter_id, input="y\n").exit_code == 0
    assert store.client.xlen(keys.dead) == 0


def test_purge_by_age_leaves_the_young_ones(dead: Dead, store: Store, keys: Keys) -> None:
    store.client.xadd(keys.dead, {"reason": "old", "id": "q-0"}, id="1000-0")
    young = add_letter(store, keys)
    assert dead("purge", "--older-than", "2h", "--yes").exit_code == 0
    assert [letter["entry_id"] for letter in letters_of(dead)] == [young]
    assert dead("purge", "--older-than", "yesterday", "--yes").exit_code == 2
