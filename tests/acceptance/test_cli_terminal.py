"""``wardian sandbox shell`` on a real pseudo-terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from e2b import Sandbox
from tests.acceptance.conftest import Server

PATIENCE_S = 120
PROMPT = r"\$ \x07?$"  # gVisor hands an interrupt to readline as a key, too, and it beeps
HANG = "bash -c 'echo hang\"\"ing; exec sleep 1000'\r"


@dataclass
class Terminal:
    """The person's side: a screen to read and keys to press."""

    screen: int
    keyboard: int
    shell: subprocess.Popen[bytes]
    seen: bytearray = field(default_factory=bytearray)

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self.screen, keys.encode())

    def expect(self, pattern: str) -> re.Match[bytes]:
        """Wait until the screen shows it, and forget everything up to there."""
        deadline = time.monotonic() + PATIENCE_S
        while not (match := re.search(pattern.encode(), self.seen)):
            ready, _, _ = select.select([self.screen], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"no {pattern!r} in {bytes(self.seen)!r}"
            try:
                self.seen += os.read(self.screen, 65536)
            except OSError:  # the other side is closed
                pytest.fail(f"ended without {pattern!r}: {bytes(self.seen)!r}")
        del self.seen[: match.end()]
        return match

    def resize(self, columns: int, rows: int) -> None:
        """As a window manager does."""
        fcntl.ioctl(self.keyboard, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.shell.send_signal(signal.SIGWINCH)

    def end(self) -> int:
        """Wait for the end; the exit code."""
        return self.shell.wait(PATIENCE_S)


@pytest.fixture
def terminal(server: Server, shared: Sandbox) -> Iterator[Terminal]:
    """A shell in the shared sandbox, on a terminal of 100 columns and 30 rows, at its prompt."""
    screen, keyboard = pty.openpty()
    fcntl.ioctl(keyboard, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    shell = subprocess.Popen(
        [sys.executable, "-m", "wardian.cli.main", "sandbox", "shell", shared.sandbox_id],
        stdin=keyboard,
        stdout=keyboard,
        stderr=keyboard,
        env={**os.environ, "TERM": "xterm-256color"},
    )
    made = Terminal(screen, keyboard, shell)
    made.expect(PROMPT)
    yield made
    shell.kill()
    shell.wait()
    os.close(screen)
    os.close(keyboard)


def test_a_session(terminal: Terminal) -> None:
    """Size, resizing, job control, a full-screen program, and the exit code."""
    terminal.type("stty size; echo $TERM; tty\r")
    terminal.expect(r"30 100\r\nxterm-256color\r\n/dev/pts/\d+\r\n")

    terminal.resize(columns=71, rows=23)
    terminal.type("until [ \"$(stty size)\" = '23 71' ]; do sleep 0.05; done; echo re''sized\r")
    terminal.expect("resized\r\n")

    terminal.type(HANG)
    terminal.expect("hanging\r\n")
    terminal.type("\x03")
    terminal.expect(PROMPT)
    terminal.type("echo interr''upted $?\r")
    terminal.expect("interrupted 130\r\n")
    terminal.expect(PROMPT)

    terminal.type("less /etc/passwd\r")
    terminal.expect(re.escape("\x1b[?1049h"))  # the other screen
    terminal.expect("root:x:0:0")
    terminal.type("q")
    terminal.expect(re.escape("\x1b[?1049l"))
    terminal.expect(PROMPT)

    terminal.type("exit 7\r")
    assert terminal.end() == 7


def test_the_terminal_is_given_back_as_it_was(terminal: Terminal) -> None:
    """Raw while the shell runs, and not afterwards; the way out works while something hangs."""
    assert not termios.tcgetattr(terminal.keyboard)[3] & termios.ECHO
    terminal.type(HANG)
    terminal.expect("hanging\r\n")
    terminal.type("\r~.")
    assert terminal.end() == 125
    assert termios.tcgetattr(terminal.keyboard)[3] & termios.ECHO


def test_a_closed_window_ends_what_ran_in_it(terminal: Terminal, shared: Sandbox) -> None:
    """As ssh does: the shell inside is hung up on, and its children with it."""
    terminal.type(HANG)
    terminal.expect("hanging\r\n")
    before = len([process for process in shared.commands.list() if process.cmd == "/bin/bash"])
    terminal.shell.send_signal(signal.SIGHUP)
    assert terminal.end() == 125
    wait_until = time.monotonic() + PATIENCE_S
    while len([process for process in shared.commands.list() if process.cmd == "/bin/bash"]) >= before:
        assert time.monotonic() < wait_until, "the shell is still there"


def test_without_a_terminal_it_says_what_to_use(server: Server, shared: Sandbox) -> None:
    """Scripts want exec."""
    done = subprocess.run(
        [sys.executable, "-m", "wardian.cli.main", "sandbox", "shell", shared.sandbox_id],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 125
    assert "wardian sandbox exec" in done.stderr
