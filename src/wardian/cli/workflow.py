"""``wardian workflow``: programs outside of sandboxes that drive them durably."""

from __future__ import annotations

import importlib.util
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from wardian.cli.arguments import address
from wardian.cli.output import EXIT_CODES, errors, note
from wardian.model.errors import Invalid
from wardian.workflows import RunError, Workflow
from wardian.workflows.worker import Worker

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Workflows: Python programs outside of sandboxes that drive them, and survive what dies.",
)


@app.command(epilog=EXIT_CODES)
def serve(
    context: typer.Context,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Python, with functions that are `@workflow`.")
    ],
    *,
    at_once: Annotated[
        int, typer.Option("--at-once", min=1, max=256, help="So many runs are worked on at a time.")
    ] = 8,
    adopt: Annotated[
        bool, typer.Option("--adopt", help="Take runs over that began with other code, if they fit this one.")
    ] = False,
) -> None:
    """Run the workflows of a file, until Ctrl-C.

    Each is an agent of its name: `wardian run start`, schedules, webhooks and other agents begin its runs.
    Any number of workers may serve the same file, anywhere.
    """
    with errors():
        server = address(context)
        worker = Worker(server.url, server.key, workflows_of(file), at_once=at_once, adopt=adopt)
        worker.told = note
        for signo in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signo, lambda *_: worker.stop())
        try:
            worker.serve()
        except RunError as error:
            raise Invalid(str(error), code=error.code) from None


def workflows_of(file: Path) -> Sequence[Workflow]:
    """Those that a file makes. Raises :class:`Invalid`."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None or not file.is_file():
        raise Invalid(f"{file} is no Python file", code="bad_workflow")
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    sys.path.insert(0, str(file.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise Invalid(
            f"{file} cannot be loaded: {type(error).__name__}: {error}", code="bad_workflow"
        ) from error
    found = [each for each in vars(module).values() if isinstance(each, Workflow)]
    if not found:
        raise Invalid(f"{file} has no @workflow", code="bad_workflow", hint="see docs/workflows.md")
    return found
