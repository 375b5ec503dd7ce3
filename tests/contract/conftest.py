"""Fixtures of the contract's tests: every script runs under guard."""

from functools import cached_property

import pytest
from tokenmill.wire.store import Script

# Put before a script: a key that is not in KEYS fails the call. A server checks this only across slots.
GUARD = """
local server, declared = redis, {}
for _, name in ipairs(KEYS) do declared[name] = true end
local function guarded(run)
  return function(...)
    local command, first, second = ...
    local name = command == 'XGROUP' and second or command == 'XREADGROUP' and select(8, ...) or first
    if command ~= 'TIME' and not declared[name] then error('undeclared key ' .. tostring(name)) end
    return run(...)
  end
end
local redis = {call = guarded(server.call), pcall = guarded(server.pcall), error_reply = server.error_reply}
"""


class GuardedScript(Script):
    @cached_property
    def text(self) -> str:
        return GUARD + super().text


@pytest.fixture(autouse=True)
def _only_declared_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every script of every test in this folder."""
    monkeypatch.setattr(Script, "load", classmethod(lambda cls, name: GuardedScript(name)))
