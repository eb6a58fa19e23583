#!/usr/bin/python3 -IS
"""``/usr/bin/sudo`` of the base image. It runs inside sandboxes, not on the host.

gVisor's kernel ignores set-user-ID bits, so Debian's sudo cannot become root. This one asks the agent, which
is root: it hands over its descriptors, its arguments and an environment, passes signals on, and ends as the
program ends. ``guest/src/sudo.c`` is the other side, and decides who may ask.
"""

import array
import os
import pwd
import shlex
import signal
import socket
import struct
import sys
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

AGENT = "\0wardian-sudo"
SECURE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
KEPT = ("TERM", "LANG", "COLORTERM", "DISPLAY", "XAUTHORITY", "LS_COLORS", "TZ")
PASSED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
FLAGS = "AEHKVbhiklnSsv"
WITH_VALUE = "CDgprtTUu"
LONG = {
    "user": "u",
    "login": "i",
    "shell": "s",
    "preserve-env": "E",
    "set-home": "H",
    "non-interactive": "n",
    "stdin": "S",
    "validate": "v",
    "version": "V",
    "help": "h",
    "list": "l",
    "reset-timestamp": "k",
    "remove-timestamp": "K",
    "chdir": "D",
    "prompt": "p",
}
REFUSED = "bCgrtTU"
USAGE = "usage: sudo [-EHikKlnSsvV] [-u user] [-D directory] [VAR=value] [-i | -s] [command [arg ...]]\n"


def fail(message: str) -> NoReturn:
    sys.stderr.write(f"sudo: {message}\n")
    sys.exit(1)


class Request:
    """What the command line asks for."""

    def __init__(self, words: list[str]) -> None:
        self.options: dict[str, str] = {}
        self.variables: dict[str, str] = {}
        at = iter(words)
        while (first := self._options(at)) and "=" in first.lstrip("="):
            name, _, value = first.partition("=")
            self.variables[name] = value
        self.command = [first, *at] if first else []

    def _options(self, at: Iterator[str]) -> str | None:
        """Take options up to the first word that is none; that word is returned."""
        for word in at:
            if word == "--":
                return next(at, None)
            if not word.startswith("-") or word == "-":
                return word
            if word.startswith("--"):
                self._long(word[2:], at)
            else:
                self._short(word[1:], at)
        return None

    def _long(self, word: str, at: Iterator[str]) -> None:
        name, has_value, value = word.partition("=")
        letter = LONG.get(name)
        if letter is None:
            fail(f"unrecognized option '--{name}'")
        if letter in WITH_VALUE and not has_value:
            value = next(at, "") or fail(f"option '--{name}' requires an argument")
        self._set(letter, value)

    def _short(self, letters: str, at: Iterator[str]) -> None:
        for index, letter in enumerate(letters):
            if letter in WITH_VALUE:
                value = letters[index + 1 :] or next(at, "")
                self._set(letter, value or fail(f"option requires an argument -- '{letter}'"))
                return
            if letter not in FLAGS:
                fail(f"invalid option -- '{letter}'")
            self._set(letter, "")

    def _set(self, letter: str, value: str) -> None:
        if letter in REFUSED:
            fail(f"option -{letter} is not supported in this sandbox")
        self.options[letter] = value

    def __contains__(self, letter: str) -> bool:
        return letter in self.options

    @property
    def user(self) -> str:
        return self.options.get("u", "root")


def find_user(name: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwuid(int(name[1:])) if name.startswith("#") else pwd.getpwnam(name)
    except (KeyError, ValueError):
        fail(f"unknown user {name}")


def program(request: Request, target: pwd.struct_passwd) -> list[str]:
    """The argument vector to run."""
    if "i" in request or "s" in request:
        own = None if "i" in request else os.environ.get("SHELL")
        shell = [own or target.pw_shell or "/bin/sh", *(["-l"] if "i" in request else [])]
        return [*shell, "-c", shlex.join(request.command)] if request.command else shell
    return request.command


def environment(request: Request, target: pwd.struct_passwd, command: list[str]) -> dict[str, str]:
    """sudo's own environment: little of the caller's, unless it is asked to keep it."""
    keep_all = "E" in request and not request.options["E"] and "i" not in request
    named = request.options.get("E", "").split(",")
    told = {
        name: value
        for name, value in os.environ.items()
        if keep_all or name in KEPT or name.startswith("LC_") or name in named
    }
    caller = pwd.getpwuid(os.getuid())
    told |= {
        "USER": target.pw_name,
        "LOGNAME": target.pw_name,
        "PATH": SECURE_PATH,
        "SHELL": target.pw_shell or "/bin/sh",
        "SUDO_USER": caller.pw_name,
        "SUDO_UID": str(caller.pw_uid),
        "SUDO_GID": str(caller.pw_gid),
        "SUDO_COMMAND": " ".join(command)[:4096],
    }
    if not keep_all or "H" in request:
        told["HOME"] = target.pw_dir
    return told | request.variables


def ask(agent: socket.socket, strings: list[str], counts: tuple[int, int], *, terminal: bool) -> None:
    """Send the request with the descriptors it needs."""
    text = b"".join(os.fsencode(each) + b"\0" for each in strings)
    descriptors = array.array("i", [_or_nothing(0), _or_nothing(1), _or_nothing(2), _here()])
    numbers = struct.pack("=IIII", len(text), *counts, int(terminal))
    agent.sendmsg([numbers], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
    agent.sendall(text)


def _here() -> int:
    """The working directory; the root, where the caller may not even name its own."""
    try:
        return os.open(".", os.O_PATH | os.O_DIRECTORY)
    except OSError:
        return os.open("/", os.O_PATH | os.O_DIRECTORY)


def _or_nothing(descriptor: int) -> int:
    """A descriptor that the caller closed is replaced by nothing."""
    try:
        os.fstat(descriptor)
    except OSError:
        return os.open("/dev/null", os.O_RDWR)
    return descriptor


def run(agent: socket.socket, strings: list[str], counts: tuple[int, int]) -> int:
    """Have the program run; return its wait status. A terminal is raw meanwhile: the program has its own."""
    terminal = os.isatty(0) and os.isatty(1)

    def pass_on(number: int, _: FrameType | None) -> None:
        agent.send(bytes((number,)))

    for number in (*PASSED, signal.SIGWINCH):
        signal.signal(number, pass_on)
    ask(agent, strings, counts, terminal=terminal)
    if not terminal:
        return _status(agent)
    import termios
    import tty

    before = termios.tcgetattr(0)
    try:
        tty.setraw(0)
        return _status(agent)
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def _status(agent: socket.socket) -> int:
    answer = b""
    while len(answer) < 4:
        piece = agent.recv(4 - len(answer))
        if not piece:
            fail("the agent hung up")
        answer += piece
    return int.from_bytes(answer, sys.byteorder)


def main() -> int:
    request = Request(sys.argv[1:])
    if "V" in request or "h" in request:
        sys.stdout.write("sudo of the sandbox: asks the agent\n" + USAGE)
        return 0
    if "l" in request:
        sys.stdout.write("(ALL : ALL) NOPASSWD: ALL\n")
        return 0
    target = find_user(request.user)
    command = program(request, target)
    if not command:
        if any(letter in request for letter in "kKv"):
            return 0
        sys.stderr.write(USAGE)
        return 1
    variables = [f"{name}={value}" for name, value in environment(request, target, command).items()]
    directory = request.options.get("D", target.pw_dir if "i" in request else "")
    agent = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    agent.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)  # or the kernel does not say who we are
    try:
        agent.connect(AGENT)
    except OSError as error:
        fail(f"the agent does not answer: {error.strerror}")
    strings = [target.pw_name, directory, *command, *variables]
    code = os.waitstatus_to_exitcode(run(agent, strings, (len(command), len(variables))))
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
