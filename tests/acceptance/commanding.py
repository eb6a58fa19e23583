"""Our command line, without a process of its own.

Starting one takes a second of a busy processor, most of it imports. That the program starts, and what it does
with its standard streams, ``test_cli_sandbox.py``, ``test_readme.py`` and others tell of real processes.
"""

from __future__ import annotations

from subprocess import CompletedProcess

from typer.testing import CliRunner

from wardian.cli.main import app


def wardian(*words: str) -> CompletedProcess[str]:
    """``wardian WORDS``, to its end. What it fails by is raised, if it is not an answer of its own."""
    done = CliRunner().invoke(app, words)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return CompletedProcess(words, done.exit_code, done.stdout, done.stderr)
