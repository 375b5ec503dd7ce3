"""Several jobs that are answered as one: a text completion of several prompts. Knows no HTTP."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence

from tokenmill.gateway.asking import Ask, checked
from tokenmill.gateway.shapes.common import Opened
from tokenmill.gateway.state import Gateway
from tokenmill.wire.messages import Choice, Completion, Delta, Timings, Usage

News = list[Delta] | Completion


class Several:
    """As an Ask. The choices of prompt p are n * p and on. No entry id tells where all are: deltas have none."""

    after: str | None = None

    def __init__(self, asks: Sequence[Ask], request_id: str, n: int) -> None:
        self._asks = asks
        self._n = n
        self.id = request_id

    @property
    def gateway(self) -> Gateway:
        return self._asks[0].gateway

    def opened(self) -> Opened:
        return Opened(self.id, self._asks[0].model, self._asks[0].created, len(self._asks) * self._n)

    async def news(self) -> AsyncIterator[News]:
        told: asyncio.Queue[tuple[int, News | Exception]] = asyncio.Queue()
        tasks = [asyncio.ensure_future(_tell(number, ask, told)) for number, ask in enumerate(self._asks)]
        ended: dict[int, Completion] = {}
        try:
            while len(ended) < len(self._asks):
                number, news = await told.get()
                if isinstance(news, Completion):
                    ended[number] = checked(news)
                elif isinstance(news, Exception):
                    raise news
                else:
                    yield [self._shifted(delta, number) for delta in news]
        except Exception:
            self.detach()  # one has failed: nobody will read the others
            raise
        finally:
            for task in tasks:
                task.cancel()
        yield self._joined(ended)

    async def result(self) -> Completion:
        results = await asyncio.gather(*(ask.result() for ask in self._asks), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                self.detach()
                raise result
        return self._joined({i: result for i, result in enumerate(results) if isinstance(result, Completion)})

    @property
    def limit_headers(self) -> Mapping[str, str]:
        """Those of the last, which say what is left now."""
        return self._asks[-1].limit_headers

    def detach(self) -> None:
        for ask in self._asks:
            ask.detach()

    def _shifted(self, delta: Delta, number: int) -> Delta:
        return delta.model_copy(update={"index": self._index(delta, number), "entry_id": ""})

    def _index(self, of: Delta | Choice, number: int) -> int:
        return number * self._n + of.index

    def _joined(self, ended: Mapping[int, Completion]) -> Completion:
        parts = [ended[number] for number in range(len(self._asks))]
        reasons = [part.finish_reason for part in parts]
        return Completion(
            request_id=self.id,
            finish_reason=max(reasons, key=lambda reason: reason in ("cancelled", "expired")),
            choices=tuple(
                choice.model_copy(
                    update={
                        "index": self._index(choice, number),
                        "finish_reason": choice.finish_reason or part.finish_reason,
                    }
                )
                for number, part in enumerate(parts)
                for choice in part.choices
            ),
            usage=Usage(
                prompt_tokens=sum(part.usage.prompt_tokens for part in parts),
                completion_tokens=sum(part.usage.completion_tokens for part in parts),
                cached_tokens=sum(part.usage.cached_tokens for part in parts),
            ),
            timings=Timings(),
        )


async def _tell(number: int, ask: Ask, told: "asyncio.Queue[tuple[int, News | Exception]]") -> None:
    try:
        async for news in ask.news():
            told.put_nowait((number, news))
    except Exception as error:  # whatever it is, it is raised by who reads the queue
        told.put_nowait((number, error))
