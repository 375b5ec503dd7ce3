"""One row of the echo model in Python's own numbers: a numpy call costs more than the work of a single row.

The same token as the arrays' way, bit for bit: a draw so close to a boundary that rounding decides is left to them.
"""

from math import exp

from tokenmill_worker.engine.uniform import mix64

LIKELY = tuple(4.0 - rank / 2 for rank in range(8))  # logits of the eight likely bytes, less than 0.5 added to each
UNLIKELY = -30.0  # logit of byte 0, the highest of the others
FIRST = b"      aaeeeiinoorrsstdlucm,.\xc3\xc3\xd0\xe2\xe6\xf0"  # first bytes of a character, mostly ASCII
NEXT = bytes(range(0x90, 0xC0))  # after each of those, these continuation bytes make valid UTF-8
LENGTH = (
    b"\1" * 0x80 + b"\0" * 0x40 + b"\2" * 0x20 + b"\3" * 0x10 + b"\4" * 8 + b"\1" * 8
)  # by first byte; 0: it is none

_MASK = (1 << 64) - 1
_STRIDES = tuple((rank + 1) * 0x9E3779B97F4A7C15 for rank in range(len(LIKELY)))
ROUNDING = 1e-12  # 256 additions of doubles err by less


def anywhere(last: int) -> int:
    """Where a row reads besides its end, when its last token stands at `last`: every page is read in time."""
    return mix64(last) % (last + 1)


def likely_logits(state: int, state_anywhere: int, tokens: list[int]) -> dict[int, float]:
    """By byte: eight, or fewer when two are the same. `tokens`: the last three, from the last one back."""
    word = mix64(state ^ mix64(state_anywhere))
    choices = NEXT if is_inside_character(tokens) else FIRST
    logits: dict[int, float] = {}
    for stride, likely in zip(_STRIDES, LIKELY, strict=True):
        own = mix64((word + stride) & _MASK)
        logits[choices[own % len(choices)]] = likely + (own >> 40) * 2.0**-25
    return logits


def is_inside_character(tokens: list[int]) -> bool:
    """Do the last tokens, from the last one back, begin a character without ending it?"""
    for back, token in enumerate(tokens):
        if LENGTH[token] > 0:
            return LENGTH[token] > back + 1
    return False


def draw(logits: dict[int, float], temperature: float, uniform: float) -> int | None:
    """The token that all 256 logits would give, or None: it takes all of them to tell."""
    order = sorted(logits, key=lambda token: (-logits[token], token))
    if temperature == 0.0:
        return order[0]
    peak = logits[order[0]]
    weights = [exp((logits[token] - peak) / temperature) for token in order]
    total = sum(weights)
    rest = 256 * exp((UNLIKELY - peak) / temperature)  # at most
    low, high = uniform * total - ROUNDING * total, uniform * (total + rest) + ROUNDING * total
    up_to = 0.0
    for token, weight in zip(order, weights, strict=True):
        if low <= up_to and order[0] != token:
            return None
        up_to += weight
        if high < up_to:
            return token
    return None
