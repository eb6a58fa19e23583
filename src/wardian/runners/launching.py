"""How files of a release are run: so that nothing of the environment gets in between.

Python runs isolated (``-I``: no PYTHON variables, no user packages; ``-S``: no ``sitecustomize``, no
``.pth``, no site packages) and writes no bytecode (``-B``); releases hold none, so none is ever read but the
standard library's own. Node keeps no compile cache and gets neither NODE_OPTIONS nor NODE_PATH. No variable
of the loader's (``LD_*``) reaches either. The interpreter itself is the environment's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from wardian.guest.guest import ProcessConfig
from wardian.model.runner import Language
from wardian.runners.manifest import Manifest
from wardian.runners.shelf import MOUNT
from wardian.runners.store import Opened

_INSIDE = Path(__file__).with_name("inside")
_PYTHON = ("-I", "-S", "-B", "-c")
LIBRARY = "/run/wardian/lib"
"""Where a run's own library is (``wardian_run``)."""

_NODE_VARIABLES = frozenset({"NODE_OPTIONS", "NODE_PATH", "NODE_COMPILE_CACHE", "NODE_REPL_EXTERNAL_MODULE"})
"""What steers Node; the rest of NODE_* (whom to trust) stays."""


class Launch(NamedTuple):
    """A program, and the variables that it starts with."""

    config: ProcessConfig
    env: Mapping[str, str]


def command(
    opened: Opened, root: str, words: Sequence[str], env: Mapping[str, str], tag: str | None = None
) -> Launch:
    """What runs a file of the release at ``root`` with arguments, in an environment of variables. A script's
    own interpreter is named here: gVisor executes nothing that lies in a file system of ours."""
    language = opened.manifest.language
    script, *rest = words
    match language:
        case Language.PYTHON:
            args = [*_PYTHON, _text("start.py"), root, LIBRARY, script, *rest]
            return _launch("python3", args, language, root, env, tag)
        case Language.NODE:
            return _launch("node", [f"{root}/{script}", *rest], language, root, env, tag)
        case Language.ANY:
            program, *flags = opened.interpreter_of(script)
            return _launch(program, [*flags, f"{root}/{script}", *rest], language, root, env, tag)


def checking(manifest: Manifest, root: str, env: Mapping[str, str]) -> Launch:
    """What looks a release over, and answers in a line; of ``any``, with the challenge alone. In Python the
    self-test follows in the same process: to start another one would take as long as everything else."""
    language, imports = manifest.language, manifest.imports
    match language:
        case Language.PYTHON:
            words = [str(len(imports)), *imports, *manifest.self_test]
            args = [*_PYTHON, _text("check.py"), root, LIBRARY, *words]
            return _launch("python3", args, language, root, env, CHECK_TAG)
        case Language.NODE:
            flags = ["--experimental-vm-modules", "--no-warnings", "--input-type=module", "-e"]
            args = [*flags, _text("check.mjs"), "--", "check", root, *imports]
            return _launch("node", args, language, root, env, CHECK_TAG)
        case Language.ANY:
            return _launch("/bin/cat", [f"{MOUNT}/challenge"], language, root, env, CHECK_TAG)


CHECK_TAG = "wardian:runner-check"


def _launch(
    program: str,
    args: Sequence[str],
    language: Language,
    root: str,
    env: Mapping[str, str],
    tag: str | None,
) -> Launch:
    kept = {name: value for name, value in env.items() if not name.startswith("LD_")}
    if language is Language.NODE:
        kept = {name: value for name, value in kept.items() if name not in _NODE_VARIABLES}
        kept["NODE_DISABLE_COMPILE_CACHE"] = "1"
    return Launch(ProcessConfig(program, tuple(args), {}, None, tag), kept | {"WARDIAN_RUNNER": root})


def _text(name: str) -> str:
    return (_INSIDE / name).read_text()


__all__ = ["CHECK_TAG", "LIBRARY", "Launch", "checking", "command"]
