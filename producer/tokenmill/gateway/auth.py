"""Who asks, and what they may: one dependency that every /v1 route takes. Knows no route."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """`key_id`: of the API key, None for anybody; `queue`: where their requests go, None for the gateway's own."""

    key_id: str | None = None
    queue: str | None = None

    def request_id(self, given: str) -> str:
        """The queue's id for one that the caller chose: two callers may choose the same."""
        return given if self.key_id is None else f"{self.key_id}:{given}"

    def owns(self, request_id: str) -> bool:
        return self.key_id is None or request_id.startswith(f"{self.key_id}:")


ANONYMOUS = Caller()


async def authorize(request: Request) -> Caller:
    return ANONYMOUS


CallerOf = Annotated[Caller, Depends(authorize)]
