"""Debian's Chromium, which opens a desktop's stream as a person would."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

PATIENCE_MS = 60_000
SHOTS = Path(__file__).resolve().parents[2] / "build/screenshots"

CONNECTED = "document.documentElement.classList.contains('noVNC_connected')"
PAINTED = """() => { const c = document.querySelector('canvas'); if (!c.width) return false;
const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
return new Set(new Uint32Array(d.buffer)).size > 100; }"""


def program(name: str) -> str:
    """Where a program is; the test is skipped where it is not."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed here: run `make setup`")
    return found


def trusting(home: Path, authority: Path) -> None:
    """Let a browser whose home is ``home`` trust an authority (PEM), and no more than it does anyway."""
    database = home / ".pki/nssdb"
    database.mkdir(parents=True)
    certutil = (program("certutil"), "-d", f"sql:{database}")
    subprocess.run((*certutil, "-N", "--empty-password"), check=True)
    subprocess.run((*certutil, "-A", "-n", "wardian", "-t", "C,,", "-i", authority), check=True)


def watch_stream(url: str, shot: Path, *, home: Path, proxy: str | None = None) -> None:
    """Open the stream, wait until it shows a desktop, and keep a picture of the page."""
    chromium = program("chromium")
    env: dict[str, str | float | bool] = {**os.environ, "HOME": str(home)}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox"],
            env=env,
            proxy=None if proxy is None else {"server": proxy},
        )
        page = browser.new_page(viewport={"width": 1100, "height": 850})
        page.goto(url, timeout=PATIENCE_MS)
        page.locator("canvas").wait_for(state="visible", timeout=PATIENCE_MS)
        page.wait_for_function(CONNECTED, timeout=PATIENCE_MS)
        page.wait_for_function(PAINTED, timeout=PATIENCE_MS)
        shot.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=shot)
        browser.close()
