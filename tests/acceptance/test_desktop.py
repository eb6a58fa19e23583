"""``desktop`` through the official SDK: a screen, a mouse, a keyboard, and a stream in a real browser."""

from __future__ import annotations

import shutil
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from e2b_desktop import Sandbox
from playwright.sync_api import sync_playwright
from tests.acceptance.builtin import house, require
from tests.acceptance.conftest import Server

__all__ = ["house"]  # a fixture

PATIENCE_S = 40
SHOTS = Path(__file__).resolve().parents[2] / "build/screenshots"


@pytest.fixture(scope="module")
def desktop(house: Server) -> Iterator[Sandbox]:
    """The desktop that tests share."""
    require(house, "desktop")
    sandbox = Sandbox.create(timeout=1800)
    yield sandbox
    sandbox.kill()


def size(png: bytes) -> tuple[int, int]:
    """Width and height of a PNG."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def eventually(true: Callable[[], bool]) -> None:
    """Programs on a desktop say to nobody when they are done: look until it shows."""
    until = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < until
        time.sleep(0.2)


def test_the_screenshot_shows_a_desktop(desktop: Sandbox) -> None:
    shot = bytes(desktop.screenshot())
    assert size(shot) == (1024, 768) == desktop.get_screen_size()
    assert len(shot) > 10_000  # a blank screen of that size takes a tenth of it
    SHOTS.mkdir(parents=True, exist_ok=True)
    (SHOTS / "desktop.png").write_bytes(shot)


def test_the_session_is_the_one_of_the_warm_snapshot(desktop: Sandbox) -> None:
    servers = desktop.commands.run("pgrep -c -x Xvfb; pgrep -c -x xfce4-session").stdout.split()
    assert servers[1] == "1"
    real = desktop.commands.run("pgrep -c -f '^/usr/bin/Xvfb :0'").stdout.strip()
    assert real == "1"


def test_the_mouse_moves(desktop: Sandbox) -> None:
    desktop.move_mouse(200, 150)
    assert desktop.get_cursor_position() == (200, 150)


def test_what_is_typed_arrives(desktop: Sandbox) -> None:
    desktop.launch("debian-xterm")
    eventually(lambda: "xterm" in _focused(desktop))
    desktop.write("echo typed > /tmp/typed")
    desktop.press("enter")
    eventually(lambda: desktop.files.exists("/tmp/typed"))
    eventually(lambda: desktop.files.read("/tmp/typed") == "typed\n")


def _focused(desktop: Sandbox) -> str:
    """What the window that gets the keys is called."""
    return str(desktop.commands.run("xdotool getwindowfocus getwindowclassname || true").stdout).lower()


def test_another_resolution_is_given(house: Server) -> None:
    require(house, "desktop")
    sandbox = Sandbox.create(timeout=300, resolution=(800, 600))
    try:
        assert size(bytes(sandbox.screenshot())) == (800, 600) == sandbox.get_screen_size()
    finally:
        sandbox.kill()


def test_the_stream_opens_in_a_browser(house: Server, desktop: Sandbox) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed here")
    desktop.stream.start(require_auth=True)
    told = urlsplit(desktop.stream.get_url(auth_key=desktop.stream.get_auth_key()))
    assert told.path == "/vnc.html"
    # Without the domain mode's certificate, the same address is served without TLS.
    url = told._replace(scheme="http").geturl()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": 850})
        page.goto(url, timeout=60_000)
        canvas = page.locator("canvas")
        canvas.wait_for(state="visible", timeout=60_000)
        page.wait_for_function(
            "document.documentElement.classList.contains('noVNC_connected')", timeout=60_000
        )
        page.wait_for_function(
            """() => { const c = document.querySelector('canvas'); if (!c.width) return false;
            const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
            return new Set(new Uint32Array(d.buffer)).size > 100; }""",
            timeout=60_000,
        )
        SHOTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=SHOTS / "stream.png")
        browser.close()
    desktop.stream.stop()
