"""Headless Chromium as a person has it: found on PATH, started without a network of its own. Knows no page."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from typing import Any, Literal

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

Theme = Literal["light", "dark"]

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def find_browser() -> tuple[str, str] | None:
    """(browser, its driver), or None: `make browser` installs them on a Debian, as root."""
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


@contextlib.contextmanager
def running_browser() -> Iterator[webdriver.Chrome]:
    """Until the block ends. It reaches loopback alone."""
    found = find_browser()
    assert found is not None, "no Chromium here"
    options = Options()
    options.binary_location = found[0]
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(executable_path=found[1]))
    try:
        yield browser
    finally:
        browser.quit()


def look_as(browser: webdriver.Chrome, *, width: int, height: int, theme: Theme = "light", scale: float = 1.0) -> None:
    """A window of this size on a system with this theme; below 600 pixels, a phone."""
    size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)


def complaints(browser: webdriver.Chrome) -> list[str]:
    """What the page's console said of errors and refusals since the last call."""
    entries: list[dict[str, Any]] = browser.get_log("browser")  # type: ignore[no-untyped-call]  # selenium leaves it open
    return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]


def hosts_asked(browser: webdriver.Chrome) -> set[str]:
    """Every URL that the page asked for since the last call, up to the host's end."""
    entries: list[dict[str, Any]] = browser.get_log("performance")  # type: ignore[no-untyped-call]  # as above
    messages = [json.loads(entry["message"])["message"] for entry in entries]
    urls = [
        message["params"]["request"]["url"] for message in messages if message["method"] == "Network.requestWillBeSent"
    ]
    return {"/".join(url.split("/")[:3]) for url in urls}
