"""The served page in a real browser: what AppTest cannot see, timers and pixels."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import matplotlib.image
import numpy as np
import pytest

pytestmark = pytest.mark.browser
CHROMIUM = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
START_S = 30


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        reason = "chromium is not installed; apt-get install chromium"
        if os.environ.get("MNEMO_REQUIRE_SERVICES") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=CHROMIUM)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def address(browser, results):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "dashboards", "--out", str(results), "--port", str(port), "--headless"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        wait_for(f"http://localhost:{port}/_stcore/health", server)
        yield f"http://localhost:{port}"
        server.send_signal(signal.SIGINT)
        assert "Traceback" not in server.communicate(timeout=20)[0]
    finally:
        server.kill()
        server.wait()


def wait_for(url, server):
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        assert server.poll() is None, server.stdout.read()
        try:
            with urllib.request.urlopen(url, timeout=1) as answer:
                assert answer.read() == b"ok"
                return
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"{url} did not answer within {START_S} s")


@pytest.fixture
def page(browser, address):
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    opened = context.new_page()
    opened.set_default_timeout(20_000)
    opened.asked = []
    opened.on("request", lambda request: opened.asked.append(request.url))
    opened.goto(address)
    yield opened
    context.close()


def choose(page, result):
    page.get_by_label("Result").first.click()
    page.get_by_role("option", name=result, exact=True).click()


def frame(page):
    card = page.get_by_test_id("stMetric").filter(has_text="Frame")
    return int(re.search(r"(\d+) / 100", card.inner_text())[1])


def play(page):
    """Play, until a few frames went through."""
    page.get_by_role("button", name="Play", exact=True).click()
    page.get_by_role("button", name="Pause", exact=True).wait_for()
    page.wait_for_function("/^([2-9]|\\d\\d+) \\/ 100$/m.test(document.body.innerText)")


def assert_is_a_picture(path):
    pixels = matplotlib.image.imread(path)[..., :3]
    assert pixels.shape == (1000, 1400, 3)
    assert len(np.unique((pixels * 31).round().astype(int).reshape(-1, 3), axis=0)) > 30
    assert pixels.std() > 0.05


def test_the_forecast_and_the_leaderboard_are_seen(page, address, tmp_path):
    choose(page, "stock")
    page.get_by_role("heading", name="prices_simulated").wait_for()
    page.locator(".js-plotly-plot .fills path, .js-plotly-plot path.js-fill").first.wait_for(state="attached")
    page.get_by_text("what then happened").wait_for()
    page.get_by_text("simulated data").wait_for()
    cells = page.get_by_test_id("stDataFrame").locator("td")  # what the canvas shows, as a screen reader finds it
    cells.first.wait_for(state="attached")
    assert {"gru", "ridge", "naive"} <= set(cells.all_text_contents())
    page.screenshot(path=tmp_path / "forecast.png")
    assert_is_a_picture(tmp_path / "forecast.png")
    elsewhere = [url for url in page.asked if not url.startswith((address, "data:", "blob:"))]
    assert elsewhere == []  # nothing is fetched from, or told to, the internet


def test_a_recording_plays_through_the_model_by_real_timers(page, tmp_path):
    choose(page, "gesture")
    bars = page.get_by_test_id("stVegaLiteChart").first
    bars.wait_for()
    assert frame(page) == 0
    still = bars.screenshot()
    play(page)
    began = time.monotonic()
    first, moving = frame(page), bars.screenshot()
    page.wait_for_timeout(1500)
    later = frame(page)
    elapsed = time.monotonic() - began
    assert first < later <= first + 10 * (elapsed + 1)  # ten frames a second, and not faster
    assert moving != still
    assert bars.screenshot() != moving
    page.screenshot(path=tmp_path / "live.png")
    assert_is_a_picture(tmp_path / "live.png")
    page.get_by_role("button", name="Reset", exact=True).click()  # pictures take long on a busy machine: it may be over
    page.wait_for_function("/^0 \\/ 100$/m.test(document.body.innerText)")
    play(page)
    page.get_by_role("button", name="Pause", exact=True).click()
    page.get_by_role("button", name="Play", exact=True).wait_for()
    stopped = frame(page)
    assert 2 <= stopped < 100
    page.wait_for_timeout(800)
    assert frame(page) == stopped
    assert page.get_by_test_id("stException").count() == 0
