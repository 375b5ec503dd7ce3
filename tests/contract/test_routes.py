"""The forms of a server's URL: what each leads to, what a wrong one is told, and that no password is shown."""

import pytest
from redis._parsers.base import BaseParser
from tokenmill.wire.errors import InvalidRequestError
from tokenmill.wire.keys import Keys
from tokenmill.wire.store import connect, connect_async, hide_password
from tokenmill.wire.store.connection import url_of
from tokenmill.wire.store.faults import is_misdirected, is_passing
from tokenmill.wire.store.routes import (
    Address,
    Answer,
    ClusterRoute,
    SentinelRoute,
    asking_url,
    plain_url,
    route_of,
)

KEY = Keys().tag
ASKED = Address("seed", 7000)


@pytest.mark.parametrize("url", ["redis://host:1/0", "rediss://host", "unix:///run/redis.sock?db=1"])
def test_a_plain_url_names_the_server_itself(url: str) -> None:
    assert route_of(url, KEY) is None


def test_a_sentinel_url_names_sentinels_and_their_service() -> None:
    route = route_of("redis+sentinel://user:secret@one:1,two,[::1]:3/mill/2", KEY)
    assert route == SentinelRoute((Address("one", 1), Address("two", 26379), Address("::1", 3)), "mill")
    assert route.command == ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mill")


def test_a_cluster_url_names_some_nodes() -> None:
    route = route_of("redis+cluster://one,two:7001", KEY)
    assert isinstance(route, ClusterRoute)
    assert route.seeds == (Address("one", 6379), Address("two", 7001))


def test_all_keys_of_a_queue_lead_to_one_slot_and_queues_to_several() -> None:
    slots = {name: _slot(Keys(name).tag) for name in ("a", "b", "c")}
    for name, slot in slots.items():
        keys = Keys(name)
        assert {_slot(key) for key in (keys.job("x"), keys.result("y"), keys.workers, keys.dead)} == {slot}
    assert len(set(slots.values())) == 3


def _slot(key: str) -> int:
    route = route_of("redis+cluster://one", key)
    assert isinstance(route, ClusterRoute)
    return route.slot


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://host", "none of the known forms"),
        ("localhost:6379", "none of the known forms"),
        ("redis+cluser://host", "none of the known forms"),
        ("redis+sentinel://host:1", "does not name the sentinels' service"),
        ("redis+sentinel://host:1/mill/zero", "'zero' is no number of a database"),
        ("redis+sentinel://host:port/mill", "'host:port' is no host:port"),
        ("redis+cluster://one,,two", "'' is no host:port"),
        ("redis+cluster://one:70000", "'one:70000' is no host:port"),
        ("redis+cluster://one/3", "a cluster has one database"),
    ],
)
def test_a_wrong_url_is_told_what_is_wrong_and_which_forms_there_are(url: str, reason: str) -> None:
    for opening in (connect, connect_async):
        with pytest.raises(InvalidRequestError, match=reason) as caught:
            opening(url)
        assert "redis+sentinel://host:port,host:port/SERVICE" in str(caught.value)
        assert caught.value.param == "url"


def test_the_password_of_no_form_is_shown() -> None:
    for url in (
        "redis+sentinel://user:secret@one:1,two:2/mill?sentinel_password=secret",
        "rediss+cluster://:secret@one:1,two:2?password=secret",
        "unix:///run/redis.sock?password=secret",
        "redis+sentinel://user:secret@one:1",
    ):
        assert "secret" not in hide_password(url)
    with pytest.raises(InvalidRequestError) as caught:
        route_of("redis+sentinel://user:secret@one:1", KEY)
    assert "secret" not in str(caught.value)


def test_a_client_knows_where_it_connects_to() -> None:
    for url, shown in (
        ("redis+sentinel://user:secret@one:1,two:2/mill", "redis+sentinel://one:1,two:2/mill"),
        ("rediss+cluster://:secret@one:1,two:2?ssl_cert_reqs=none", "rediss+cluster://one:1,two:2"),
        ("redis://user:secret@one:1/3", "redis://one:1/3"),
        ("rediss://user:secret@one:1/3", "rediss://one:1/3"),
    ):
        with connect(url) as client:
            assert url_of(client) == shown
        assert url_of(connect_async(url)) == shown


def test_user_database_and_options_are_the_nodes() -> None:
    url = "rediss+sentinel://user:p%40ss@one:1,two:2/mill/2?ssl_ca_certs=ca.crt&sentinel_password=other"
    assert plain_url(url) == "rediss://user:p%40ss@localhost/2?ssl_ca_certs=ca.crt"
    assert asking_url(url) == "rediss://:other@localhost/0?ssl_ca_certs=ca.crt"
    assert (
        asking_url("redis+cluster://user:pw@one")
        == plain_url("redis+cluster://user:pw@one")
        == ("redis://user:pw@localhost/0")
    )


def test_a_sentinels_answer_is_the_master_or_that_it_knows_none() -> None:
    route = SentinelRoute((ASKED,), "mill")
    assert route.read([b"10.0.0.1", b"6379"], ASKED) == Answer(Address("10.0.0.1", 6379))
    assert route.read(None, ASKED) == Answer(None)


def test_a_clusters_answer_is_the_master_of_the_slot_and_its_peers() -> None:
    one, two, replica = [b"10.0.0.1", 1, b"id"], [b"", 2, b"id"], [b"10.0.0.3", 3, b"id"]
    reply = [[0, 99, one, replica], [100, 199, two]]
    answer = ClusterRoute((ASKED,), 50).read(reply, ASKED)
    assert answer.master == Address("10.0.0.1", 1)
    assert answer.peers == (Address("10.0.0.1", 1), Address("10.0.0.3", 3), Address("seed", 2))
    assert ClusterRoute((ASKED,), 150).read(reply, ASKED).master == Address("seed", 2)
    assert ClusterRoute((ASKED,), 500).read(reply, ASKED).master is None


@pytest.mark.parametrize(
    ("text", "passes", "leads_elsewhere"),
    [
        ("MOVED 1 host:2", True, True),
        ("ASK 1 host:2", True, True),
        ("READONLY You can't write against a read only replica.", True, True),
        ("ERR Error running script: @user_script:1: -READONLY You can't write", True, True),
        ("UNBLOCKED force unblock from blocking operation", True, True),
        ("CLUSTERDOWN Hash slot not served", True, True),
        ("TRYAGAIN Multiple keys request during rehashing of slot", True, False),
        ("NOREPLICAS Not enough good replicas to write.", True, False),
        ("MISCONF Errors writing to the AOF file", True, False),
        ("LOADING server is loading the dataset in memory", True, False),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", False, False),
        ("ERR unknown command", False, False),
    ],
)
def test_errors_that_pass_are_told_from_those_that_stay(text: str, passes: bool, leads_elsewhere: bool) -> None:
    error = _as_read(text)
    assert (is_passing(error), is_misdirected(error)) == (passes, leads_elsewhere)


def _as_read(text: str) -> Exception:
    """As redis-py makes an exception of an error reply."""
    error: Exception = BaseParser.parse_error(text)  # type: ignore[no-untyped-call]  # redis-py has no types here
    return error
