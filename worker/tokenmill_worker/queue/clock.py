"""The server's clock, heard now and then and counted on from there. Deadlines and timings are in its milliseconds."""

import time


class ServerClock:
    """Until it has heard of the server's time, it shows this machine's own."""

    def __init__(self) -> None:
        self._ahead_ms = (time.time() - time.monotonic()) * 1000

    def hear(self, server_ms: float) -> None:
        """A reply said that it is now so late. Half a round trip of error does not matter to deadlines in seconds."""
        self._ahead_ms = server_ms - time.monotonic() * 1000

    def now_ms(self) -> float:
        return time.monotonic() * 1000 + self._ahead_ms
