"""Takes the dashboard's pictures for the documents: `python -m docs.screens`, from the repository's root.

A server, two workers of the paced echo model, a gateway and a bulk worker, all on this machine; bulk runs and single
requests of many lengths; one dead letter. About a minute.
"""

import base64
import json
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from selenium import webdriver
from tokenmill import Client
from tokenmill.wire.keys import Keys
from tokenmill.wire.store import connect

from tests.e2e.commands import started, tokenmill
from tests.gateway.running import running_gateway
from tests.support.browser import Theme, look_as, running_browser
from tests.support.servers import running_server
from tests.support.waiting import wait_until

FOLDER = Path(__file__).parent / "images"
MODEL = "echo?step_ms=40"
MOST_BYTES = 200_000
NUM_SHOWN_STEPS = 230  # of the picture's 240: most of it is drawn
LENGTHS = (12, 24, 40, 64, 90, 130, 200)  # of answers, in tokens
BACKGROUND = "Answer in the style of a patient teacher, in short sentences, and end with a question. " * 3


def rows(number: int, seed: int) -> list[dict[str, object]]:
    """Requests that share an instruction and differ in length."""
    chance = random.Random(seed)
    prompts = [BACKGROUND + "word " * chance.randint(1, 160) for _ in range(number)]
    return [{"prompt": prompt, "max_tokens": chance.choice(LENGTHS), "ignore_eos": True} for prompt in prompts]


@contextmanager
def fleet() -> Iterator[str]:
    """The gateway's URL, before a fleet at work."""
    with ExitStack() as stack:
        url = stack.enter_context(running_server()).tcp_url
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for num_rows in (32, 24):
            options = ("--max-num-seqs", num_rows, "--max-num-batched-tokens", 128, "--redis", url)
            stack.enter_context(started("worker", "--model", MODEL, "--served-model-name", "echo", *options))
        stack.enter_context(started("bulk", "worker", "--redis", url))
        gateway = stack.enter_context(running_gateway(redis_url=url, allow_admin=True))
        fill(url, folder)
        yield gateway.url


def fill(url: str, folder: Path) -> None:
    for seed, (name, number) in enumerate({"reviews": 90, "summaries": 2400}.items()):
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows(number, seed)))
        tokenmill("bulk", "submit", path, "--out", folder / f"{name}-answered.jsonl", "--raw", "--redis", url)
    with Client(url) as client:
        client.submit_many([{**row, "priority": "high"} for row in rows(30, 7)])
        client.submit_many(rows(400, 8))
        client.submit([10**9], id="import-0042", priority="high")
    connect(url).xadd(
        Keys().dead, {"reason": "worker_crashed twice, alone", "id": "scan-117", "lane": "2", "entry": "1-0"}
    )


def take(browser: webdriver.Chrome, name: str, *, width: int, height: int, theme: Theme, scale: float = 1.0) -> None:
    look_as(browser, width=width, height=height, theme=theme, scale=scale)
    time.sleep(1.5)  # until it is drawn anew
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
    path = FOLDER / f"{name}.png"
    path.write_bytes(base64.b64decode(shot["data"]))
    if path.stat().st_size > MOST_BYTES:
        raise SystemExit(f"{path.name} is too large for a document: {path.stat().st_size} bytes")


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    with fleet() as url, running_browser() as browser:
        look_as(browser, width=1360, height=1250)
        browser.get(url)
        step = "return Number(document.getElementById('picture').dataset.step ?? 0)"
        wait_until(lambda: browser.execute_script(step) > 0, description="the batch is drawn", timeout=60)
        first = browser.execute_script(step)
        wait_until(
            lambda: browser.execute_script(step) > first + NUM_SHOWN_STEPS, description="it is full", timeout=120
        )
        time.sleep(12)  # a curve of some length
        take(browser, "dashboard-light", width=1360, height=1250, theme="light")
        take(browser, "dashboard-dark", width=1360, height=1250, theme="dark")
        take(browser, "dashboard-phone", width=390, height=1180, theme="light", scale=1.5)


if __name__ == "__main__":
    main()
