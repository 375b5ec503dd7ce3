"""Responses as they stand in Redis: found, cancelled and deleted by whichever gateway process is asked."""

from typing import NamedTuple

from pydantic import ValidationError

from tokenmill.client import AsyncClient, AsyncJob
from tokenmill.gateway.errors import ApiError
from tokenmill.gateway.responses.view import (
    PREFIX,
    Asked,
    Fields,
    Outcome,
    final_outcome,
    final_status,
    item_id,
    response_object,
)
from tokenmill.reader import ResultReader
from tokenmill.wire.errors import ResultError, ResultTimeoutError
from tokenmill.wire.keys import NOTE_TTL_S
from tokenmill.wire.messages import FINAL_STATES, Completion, Request, split_stream_id
from tokenmill.wire.store import Noted, forget, leave_note, recall

Turn = dict[str, str]  # role, content

CANCEL_WAIT_S = 5.0  # a worker drops a request within a step and a tenth of a second; it may be a long step


class Kept(NamedTuple):
    """One response at one moment. `completion`: its request's last word, once there is one."""

    request_id: str
    asked: Asked
    noted: Noted
    completion: Completion | None

    @property
    def is_final(self) -> bool:
        return self.completion is not None

    def fields(self) -> Fields:
        """The response object."""
        return response_object(self.request_id, self.asked, self._outcome())

    def _outcome(self) -> Outcome:
        if self.completion is None:
            return Outcome("in_progress" if self.noted.state == "running" else "queued", [])
        assert self.noted.last is not None  # the last word is the last entry
        epoch, _ = split_stream_id(self.noted.last[0])
        return final_outcome(self.completion, item_id(self.request_id, epoch), self.asked.created_at)

    def turns(self) -> list[Turn]:
        """What was said up to and with its answer, its instructions aside."""
        messages = Request.decode(self.noted.body).messages or ()
        said = [{"role": turn.role, "content": turn.content} for turn in messages]
        assert self.completion is not None
        return [*said[self.asked.instructions is not None :], {"role": "assistant", "content": self.completion.text}]


async def note(client: AsyncClient, request_id: str, asked: Asked, *, result_ttl_s: int) -> Asked:
    """Before its request is submitted, so that no response is without it; what an earlier call noted stands."""
    fields = {"asked": asked.model_dump_json(exclude_defaults=True)}
    ttl_s = NOTE_TTL_S + result_ttl_s
    first = await client.perform(request_id, lambda keys: leave_note(keys, request_id, fields, ttl_s=ttl_s))
    return Asked.model_validate_json(first["asked"])


async def keep(client: AsyncClient, request_id: str) -> None:
    """A second connection follows it now: the loss of the first means nothing any more."""
    fields = {"kept": "1"}
    await client.perform(request_id, lambda keys: leave_note(keys, request_id, fields, ttl_s=NOTE_TTL_S))


async def find(client: AsyncClient, request_id: str) -> Kept:
    """ApiError 404: there is none, or its time is over."""
    noted = await client.perform(request_id, lambda keys: recall(keys, request_id))
    if noted.asked is None or noted.state is None:
        raise not_found(PREFIX + request_id)
    try:
        asked = Asked.model_validate_json(noted.asked)
    except ValidationError:
        raise not_found(PREFIX + request_id) from None
    return Kept(request_id, asked, noted, _completion(request_id, noted))


async def find_turns(client: AsyncClient, request_id: str) -> list[Turn]:
    """The conversation that a new response goes on with; ApiError 400 names `previous_response_id`."""
    try:
        kept = await find(client, request_id)
    except ApiError:
        raise no_predecessor(PREFIX + request_id, "not_found", "is not there, or its time is over") from None
    if kept.completion is None or final_status(kept.completion) not in ("completed", "incomplete"):
        raise no_predecessor(PREFIX + request_id, "not_completed", "has no answer to go on with")
    return kept.turns()


async def cancel(client: AsyncClient, request_id: str) -> Kept:
    """As it stands then: final already, or after CANCEL_WAIT_S still on its way to be."""
    await find(client, request_id)
    job = client.job(request_id)
    if await job.cancel() == "flagged":
        await _wait_final(job)
    return await find(client, request_id)


async def delete(client: AsyncClient, request_id: str) -> None:
    """Cancelled first, where it is not final. ApiError 409: it does not become final."""
    kept = await cancel(client, request_id)
    if not kept.is_final:
        raise ApiError(409, "the response is still being cancelled: try again", code="not_cancelled_yet")
    await client.perform(request_id, lambda keys: forget(keys, request_id))


async def cancel_unless_kept(client: AsyncClient, request_id: str) -> None:
    """Its client went away, and nobody else follows it."""
    noted = await client.perform(request_id, lambda keys: recall(keys, request_id))
    if not noted.is_kept:
        await client.job(request_id).cancel()


def not_found(response_id: str) -> ApiError:
    return ApiError(404, f"Response with id '{response_id[:200]}' not found.", code="not_found")


def no_predecessor(response_id: str, code: str, reason: str) -> ApiError:
    message = f"the response '{response_id[:200]}' {reason}"
    return ApiError(400, message, param="previous_response_id", code=f"previous_response_{code}")


def _completion(request_id: str, noted: Noted) -> Completion | None:
    if noted.state not in FINAL_STATES or noted.last is None:
        return None
    reader = ResultReader(request_id)
    reader.feed(*noted.last)
    return reader.completion


async def _wait_final(job: AsyncJob) -> None:
    try:
        await job.result(timeout=CANCEL_WAIT_S)
    except (ResultTimeoutError, ResultError):
        return  # whoever looks again sees how it stands
