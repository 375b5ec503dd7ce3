"""Fills a history: from a server at rest, from the ledger, and from an engine that nothing happens to."""

from collections.abc import Iterable, Sequence
from typing import Any

import redis
from tokenmill.wire.errors import DecodeError
from tokenmill.wire.errors import InvalidRequestError as InvalidOnWireError
from tokenmill.wire.keys import GROUP, Keys, Lane
from tokenmill.wire.messages import Request
from tokenmill.wire.store import Delivery
from tokenmill_worker.engine import Engine, EngineConfig
from tokenmill_worker.engine.api import EngineRequest, InvalidRequestError
from tokenmill_worker.engine.offline import run_offline
from tokenmill_worker.queue.burial import code_and_message
from tokenmill_worker.queue.requests import RequestBuilder, ServedModel

from tests.support.history import Accepted, DeadLetter, Expected, History, JobRecord, Reading, Rest, Said, Told
from tests.support.ledger import Ledger
from tests.support.places import Places
from tests.support.servers import keys_without_ttl


def record(history: History, server: redis.Redis, places: Places, ledger: Ledger) -> None:
    """All that stands on the server now, and all that the ledger heard."""
    client: Any = server  # redis-py types each reply as everything that it could be
    for request_id in history.accepted:
        keys = places.of(request_id)
        history.streams[request_id] = Reading("", request_id, told(client.xrange(keys.result(request_id))))
        if fields := _texts(client.hgetall(keys.job(request_id)).items()):
            history.jobs[request_id] = JobRecord(request_id, {k: v for k, v in fields.items() if k != "body"})
    letters = [letter for keys in places.all for letter in client.xrange(keys.dead)]
    history.dead_letters = [DeadLetter(_texts(fields.items())) for _, fields in letters]
    history.tenures = list(ledger.tenures.values())
    history.writes = list(ledger.writes.values())
    rests = [_rest(client, keys) for keys in places.all]
    waiting = {key: number for rest in rests for key, number in rest.waiting.items()}
    history.rest = Rest(waiting, tuple(sorted(name for rest in rests for name in rest.without_ttl)))


def told(entries: Iterable[tuple[bytes, dict[bytes, bytes]]]) -> tuple[Told, ...]:
    return tuple(Told(entry_id.decode(), _texts(fields.items())) for entry_id, fields in entries)


def _rest(client: Any, keys: Keys) -> Rest:
    lanes = [keys.lane(lane) for lane in Lane]
    waiting = {lane: client.xlen(lane) for lane in lanes}
    for lane in filter(client.exists, lanes):
        groups = {group["name"].decode(): group["pending"] for group in client.xinfo_groups(lane)}
        waiting[f"{lane} pending"] = groups.get(GROUP, 0)
    for zset in (keys.workers, keys.dead_workers, keys.deadlines, keys.not_before):
        waiting[zset] = client.zcard(zset)
    for_ever = {name for name in keys_without_ttl(client, keys.queue) if name.startswith(keys.tag)}
    left = for_ever - {*lanes, keys.dead, keys.count}
    return Rest(waiting, tuple(sorted(left)))


def expect(history: History, requests: Iterable[Accepted]) -> None:
    """What each of them becomes when nothing happens: the same engine, no queue, one batch."""
    engine = Engine(EngineConfig(model="echo", max_num_seqs=256))
    builder = RequestBuilder(ServedModel({"echo"}, engine.tokenizer, engine.default_params, engine))
    good: list[EngineRequest] = []
    for accepted in requests:
        outcome = _built(builder, accepted)
        if isinstance(outcome, str):
            history.expected[accepted.request_id] = Expected(accepted.request_id, error=outcome)
        else:
            good.append(outcome)
    for request_id, choices in uninterrupted(engine, good):
        history.expected[request_id] = Expected(request_id, choices)


def _built(builder: RequestBuilder, accepted: Accepted) -> EngineRequest | str:
    """The engine's request, or the code of the error that it ends with."""
    if accepted.fault:
        return accepted.fault
    try:
        return builder.build(accepted.request_id, Request.decode(accepted.body.encode()))
    except InvalidRequestError as error:
        return error.code
    except (DecodeError, InvalidOnWireError) as error:
        return code_and_message(error)[0]


def uninterrupted(engine: Engine, requests: Sequence[EngineRequest]) -> list[tuple[str, tuple[Said, ...]]]:
    return [
        (
            output.request_id,
            tuple(Said(tuple(choice.token_ids), choice.text, choice.finish_reason) for choice in output.choices),
        )
        for output in run_offline(engine, requests, max_active=256)
    ]


def raw_request(lane: Lane, entry_id: str, fields: dict[bytes, bytes]) -> tuple[str, str, str]:
    """(id, body, fault) of a bare entry, as its producer knows them; one with a fault is no request."""
    delivery = Delivery(lane, entry_id, fields)
    try:
        raw = delivery.claim().raw
    except (DecodeError, InvalidOnWireError) as error:
        return delivery.request_id, "", code_and_message(error)[0]
    return delivery.request_id, raw.body.decode() if raw else "", ""


def _texts(pairs: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    return {_text(name): _text(value) for name, value in pairs}


def _text(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")
