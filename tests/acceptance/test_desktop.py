"""``desktop`` through the official SDK: a screen, a mouse, a keyboard, and a stream in a real browser."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from e2b_desktop import Sandbox
from tests.acceptance.browser import SHOTS, watch_stream
from tests.acceptance.builtin import house, require
from tests.acceptance.conftest import Server
from tests.acceptance.sdks.releases import DESKTOP, SDKS, run_beside

__all__ = ["house"]  # a fixture

PATIENCE_S = 40


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
    desktop.launch("st")
    eventually(lambda: '"st-' in _focused(desktop))
    desktop.write("echo typed > /tmp/typed")
    desktop.press("enter")
    eventually(lambda: desktop.files.exists("/tmp/typed"))
    eventually(lambda: desktop.files.read("/tmp/typed") == "typed\n")


def _focused(desktop: Sandbox) -> str:
    """Of which class the window that gets the keys is."""
    return str(desktop.commands.run("xprop -id $(xdotool getwindowfocus) WM_CLASS || true").stdout)


def test_another_resolution_is_given(house: Server) -> None:
    require(house, "desktop")
    sandbox = Sandbox.create(timeout=300, resolution=(800, 600))
    try:
        assert size(bytes(sandbox.screenshot())) == (800, 600) == sandbox.get_screen_size()
    finally:
        sandbox.kill()


def test_the_stream_opens_in_a_browser(house: Server, desktop: Sandbox, tmp_path: Path) -> None:
    desktop.stream.start(require_auth=True)
    told = urlsplit(desktop.stream.get_url(auth_key=desktop.stream.get_auth_key()))
    assert told.path == "/vnc.html"
    # Without a domain, the same address is served without TLS.
    watch_stream(told._replace(scheme="http").geturl(), SHOTS / "stream.png", home=tmp_path)
    desktop.stream.stop()


def test_the_javascript_sdk(house: Server) -> None:
    require(house, "desktop")
    run_beside(DESKTOP, SDKS / "desktop.mjs", os.environ)
