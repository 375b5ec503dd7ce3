"""The page at / in a headless Chromium: what an operator sees of a running bulk job, and what they can do."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from selenium import webdriver
from selenium.webdriver.common.by import By
from tokenmill import Client
from tokenmill.wire.keys import Keys, Lane
from tokenmill.wire.messages import Request

from tests.e2e.commands import started, tokenmill_here
from tests.gateway.running import RunningGateway, running_gateway
from tests.support.browser import complaints, find_browser, hosts_asked, look_as, running_browser
from tests.support.waiting import wait_until

QUEUE = "page"  # of these tests alone
PATIENCE_S = 30.0  # a browser on a busy machine takes its time


@pytest.fixture(scope="module")
def chromium() -> Iterator[webdriver.Chrome]:
    if find_browser() is None:
        message = "no chromium and chromedriver on PATH: `make browser` installs Debian's, as root"
        assert "CI" not in os.environ, message
        pytest.skip(message)
    with running_browser() as browser:
        yield browser


@pytest.fixture
def browser(chromium: webdriver.Chrome) -> Iterator[webdriver.Chrome]:
    """A desktop's window; whatever the page's console complained of fails the test."""
    look_as(chromium, width=1360, height=900)
    complaints(chromium)
    hosts_asked(chromium)
    yield chromium
    found = complaints(chromium)
    chromium.get("about:blank")  # the gateway need not wait for it
    assert found == []


@pytest.fixture(scope="module")
def served(redis_url: str) -> Iterator[RunningGateway]:
    """A gateway that may redrive, before a queue with a slow worker."""
    options = ("--redis", redis_url, "--queue", QUEUE)
    with (
        started("worker", "--model", "echo?step_ms=20", "--max-num-seqs", 8, *options),
        running_gateway(redis_url=redis_url, queue=QUEUE, allow_admin=True) as running,
    ):
        yield running


@pytest.fixture
def asking(redis_url: str) -> Iterator[Client]:
    with Client(redis_url, QUEUE) as client:
        yield client


def text_of(browser: webdriver.Chrome, selector: str) -> str:
    return browser.find_element(By.CSS_SELECTOR, selector).text


def picture_of(browser: webdriver.Chrome) -> dict[str, int]:
    """What the picture says it shows."""
    told: dict[str, str] = browser.execute_script("return {...document.getElementById('picture').dataset}")
    return {name: int(value) for name, value in told.items()}


def wait_text(browser: webdriver.Chrome, selector: str, words: str) -> None:
    wait_until(
        lambda: words in text_of(browser, selector), description=f"{selector} says {words!r}", timeout=PATIENCE_S
    )


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_follows_the_systems_theme_until_somebody_chooses(
    browser: webdriver.Chrome, gateway: RunningGateway, theme: Any
) -> None:
    look_as(browser, width=1360, height=900, theme=theme)
    browser.get(gateway.url)
    assert _is_dark(browser) is (theme == "dark")
    toggle = browser.find_element(By.ID, "theme")
    toggle.click()
    assert (toggle.text, _is_dark(browser)) == ("Theme: light", False)
    toggle.click()
    assert (toggle.text, _is_dark(browser)) == ("Theme: dark", True)
    browser.refresh()
    assert _is_dark(browser), "the choice is kept"
    browser.execute_script("localStorage.clear()")


def _is_dark(browser: webdriver.Chrome) -> bool:
    color: str = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    return sum(map(int, color.removeprefix("rgb(").removesuffix(")").split(","))) < 3 * 128


@pytest.mark.parametrize("width", [360, 1360])
def test_nothing_is_wider_than_the_window_and_nothing_jumps(
    browser: webdriver.Chrome, served: RunningGateway, asking: Client, width: int
) -> None:
    look_as(browser, width=width, height=800)
    browser.get(served.url)
    wait_text(browser, "#headline", "Idle")
    tops = _tops(browser)
    asking.submit_many([{"prompt": "hello", "max_tokens": 60, "ignore_eos": True}] * 12)
    wait_until(lambda: picture_of(browser).get("running"), description="rows are in the batch", timeout=PATIENCE_S)
    wait_text(browser, "#headline", "Working")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert _tops(browser) == tops


def _tops(browser: webdriver.Chrome) -> list[float]:
    """Where each part begins."""
    parts = "[...document.querySelectorAll('main > *, .columns > *')]"
    tops: list[float] = browser.execute_script(f"return {parts}.map((part) => part.getBoundingClientRect().top)")
    return tops


def test_every_control_and_picture_has_a_name(browser: webdriver.Chrome, served: RunningGateway) -> None:
    browser.get(served.url)
    wait_text(browser, "#headline", "Idle")
    nameless = browser.execute_script(
        "return [...document.querySelectorAll('button, input, progress, canvas, [role=img]')].filter((one) =>"
        " !(one.getAttribute('aria-label') || one.textContent.trim() || one.labels?.length)).map((one) => one.id)"
    )
    assert nameless == []
    assert browser.find_element(By.TAG_NAME, "html").get_attribute("lang") == "en"


def test_a_dead_letter_is_redriven_with_its_button(
    browser: webdriver.Chrome, served: RunningGateway, server: redis.Redis, asking: Client
) -> None:
    body = Request.build(prompt="hello", max_tokens=3).encode()
    letter = {"reason": "worker_crashed", "id": "poison", "lane": Lane.NORMAL.value, "entry": "1-0", "body": body}
    server.xadd(Keys(QUEUE).dead, letter)  # type: ignore[arg-type]  # a dict's type cannot vary in redis-py
    browser.get(served.url)
    wait_text(browser, "#letters", "worker_crashed")
    wait_text(browser, "#headline", "1 dead letter")
    browser.find_element(By.CSS_SELECTOR, "#letters button.redrive").click()
    wait_text(browser, "#redrive-told", "poison is asked again as poison~1.")
    wait_text(browser, "#letters-empty", "None.")
    assert asking.job("poison~1").result(timeout=30).text


def test_a_gateway_that_only_shows_offers_no_button(
    browser: webdriver.Chrome, gateway: RunningGateway, server: redis.Redis
) -> None:
    dead = Keys(gateway.settings.queue).dead
    server.xadd(dead, {"reason": "worker_crashed", "id": "poison", "lane": "2", "entry": "1-0"})
    browser.get(gateway.url)
    wait_text(browser, "#letters", "worker_crashed")
    assert not browser.find_elements(By.CSS_SELECTOR, "button.redrive")
    server.delete(dead)


def test_a_request_that_failed_is_named_without_its_words(
    browser: webdriver.Chrome, served: RunningGateway, asking: Client
) -> None:
    asking.submit([10**9], id="too-large-a-token")
    browser.get(served.url)
    wait_text(browser, "#failures", "too-large-a-token")


def test_a_page_that_lost_its_gateway_says_so_and_comes_back(
    browser: webdriver.Chrome, redis_url: str, queue: str
) -> None:
    with running_gateway(redis_url=redis_url, queue=queue) as first:
        browser.get(first.url)
        wait_text(browser, "#connection", "live")
    wait_text(browser, "#connection", "connection lost")
    complaints(browser)  # refused connections, which the browser itself reports
    with running_gateway(redis_url=redis_url, queue=queue, port=int(first.url.rpartition(":")[2])):
        wait_text(browser, "#connection", "live")
        complaints(browser)


def test_with_api_keys_the_page_asks_for_one_once(browser: webdriver.Chrome, redis_url: str, queue: str) -> None:
    made = tokenmill_here("keys", "create", "--redis", redis_url, "--json")
    assert made.returncode == 0, made.stderr
    with running_gateway(redis_url=redis_url, queue=queue, requires_keys=True) as running:
        browser.get(running.url)
        key = browser.find_element(By.ID, "key")
        wait_until(key.is_displayed, description="it asks for a key")
        key.send_keys("sk-tm-wrong\n")
        wait_text(browser, "#key-error", "does not accept")
        key.clear()
        key.send_keys(json.loads(made.stdout)["key"] + "\n")
        wait_text(browser, "#connection", "live")
        browser.refresh()
        wait_text(browser, "#connection", "live")
        complaints(browser)  # 401 is what the browser itself reports


def submit_run(redis_url: str, folder: Path, *, num_rows: int) -> str:
    rows = folder / "rows.jsonl"
    lines = [json.dumps({"prompt": f"SECRET {number}", "max_tokens": 20 + number % 17}) for number in range(num_rows)]
    rows.write_text("\n".join(lines) + "\n")
    where = ("--redis", redis_url, "--queue", QUEUE)
    done = tokenmill_here("bulk", "submit", rows, "--out", folder / "page-done.jsonl", "--raw", *where)
    assert done.returncode == 0, done.stderr
    return "page-done.jsonl"


def test_a_running_bulk_job_is_seen_moving(
    browser: webdriver.Chrome, served: RunningGateway, redis_url: str, tmp_path: Path
) -> None:
    out = submit_run(redis_url, tmp_path, num_rows=200)
    with started("bulk", "worker", "--redis", redis_url):
        browser.get(served.url)
        wait_until(lambda: picture_of(browser).get("running"), description="rows are in the batch", timeout=PATIENCE_S)
        before = picture_of(browser)
        wait_until(lambda: picture_of(browser)["step"] > before["step"] + 20, description="steps go by")
        wait_until(lambda: picture_of(browser)["ended"], description="rows end")
        wait_until(lambda: _settled(browser, out) > 0, description="the run gets on", timeout=PATIENCE_S)
        settled = _settled(browser, out)
        wait_until(lambda: _settled(browser, out) > settled, description="... and on", timeout=PATIENCE_S)
        assert "Working" in text_of(browser, "#headline")
        assert any(character.isdigit() for character in text_of(browser, "[data-figure=tokens]"))
    assert "SECRET" not in browser.page_source
    assert hosts_asked(browser) == {served.url}, "nothing is loaded from elsewhere"


def _settled(browser: webdriver.Chrome, out: str) -> float:
    script = "return document.querySelector(arguments[0])?.value ?? 0"
    value: Any = browser.execute_script(script, f"progress[aria-label='Progress of {out}']")
    return float(value)
