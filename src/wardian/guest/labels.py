"""How a process was asked for and how it ended, in bytes and back. No I/O."""

from __future__ import annotations

import json
import signal as signals

from wardian.guest.frames import Violation
from wardian.guest.values import Exit, ProcessConfig

LABEL_MAX = 16 * 1024

_SIGNAL_WORDS = {
    signals.SIGHUP: "hangup",
    signals.SIGINT: "interrupt",
    signals.SIGQUIT: "quit",
    signals.SIGILL: "illegal instruction",
    signals.SIGTRAP: "trace/breakpoint trap",
    signals.SIGABRT: "aborted",
    signals.SIGBUS: "bus error",
    signals.SIGFPE: "floating point exception",
    signals.SIGKILL: "killed",
    signals.SIGUSR1: "user defined signal 1",
    signals.SIGSEGV: "segmentation fault",
    signals.SIGUSR2: "user defined signal 2",
    signals.SIGPIPE: "broken pipe",
    signals.SIGALRM: "alarm clock",
    signals.SIGTERM: "terminated",
}


def decode_status(status: int) -> Exit:
    """A Linux wait status of a process that ended."""
    signo, code = status & 0x7F, status >> 8
    if status > 0xFFFF or signo == 0x7F or (signo and code):
        raise Violation(f"{status:#x} is no wait status")
    if signo:
        try:
            words = _SIGNAL_WORDS.get(signals.Signals(signo), f"signal {signo}")
        except ValueError:
            words = f"signal {signo}"
        dumped = " (core dumped)" if status & 0x80 else ""
        return Exit(exit_code=-1, exited=False, status=f"signal: {words}{dumped}", signal=signo)
    return Exit(exit_code=code, exited=True, status=f"exit status {code}")


def encode_label(config: ProcessConfig) -> bytes:
    """The configuration as an exec's label: as much of it as fits."""
    whole = {
        "cmd": config.cmd,
        "args": list(config.args),
        "envs": dict(config.envs),
        "cwd": config.cwd,
        "tag": config.tag,
    }
    tag = config.tag and config.tag[:256]
    shorter: list[dict[str, object]] = [
        {},
        {"envs": {}},
        {"envs": {}, "args": []},
        _least(config.cmd[:256], tag),
    ]
    for less in shorter:
        label = json.dumps({**whole, **less}, ensure_ascii=False, separators=(",", ":")).encode()
        if len(label) <= LABEL_MAX:
            break
    return label


def _least(cmd: str, tag: str | None) -> dict[str, object]:
    return {"cmd": cmd, "args": [], "envs": {}, "cwd": None, "tag": tag}


def decode_label(label: bytes) -> ProcessConfig:
    """Undo :func:`encode_label`; anything else is a violation."""
    try:
        if len(label) > LABEL_MAX:
            raise ValueError
        value = json.loads(label)
        cmd, args, envs, cwd, tag = (value[key] for key in ("cmd", "args", "envs", "cwd", "tag"))
        texts = [cmd, *args, *envs.keys(), *envs.values(), *(item for item in (cwd, tag) if item is not None)]
        proper = len(value) == 5 and type(args) is list and all(isinstance(text, str) for text in texts)
        "".join(texts).encode()  # no lone surrogates
        if not proper:
            raise ValueError
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise Violation("a process label that is not ours") from None
    return ProcessConfig(cmd=cmd, args=tuple(args), envs=envs, cwd=cwd, tag=tag)
