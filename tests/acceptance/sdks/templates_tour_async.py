"""Drives the asynchronous template API of a Python SDK. Run as ``templates_tour_async.py <module> <prefix>``.

Ends with one line of JSON, as ``templates_tour.py`` does, which goes further: both faces share what they
send.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any


async def drive(module_name: str, prefix: str) -> dict[str, str]:
    """Builds, one of them in the background, that go on at once; their names and tags."""
    sdk: Any = importlib.import_module(module_name)
    await asyncio.gather(_build(sdk, prefix), _in_background(sdk, prefix), _failing(sdk, prefix))
    await _names_and_tags(sdk, prefix)
    return dict.fromkeys(("build", "in background", "failing", "names", "tags"), "ok")


async def _build(sdk: Any, prefix: str) -> None:
    lines: list[str] = []
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "note.txt").write_text("a note\n")
        template = (
            sdk.AsyncTemplate(file_context_path=directory)
            .from_python_image("3")
            .copy("note.txt", "notes/")
            .run_cmd("cat notes/note.txt")
        )
        info = await sdk.AsyncTemplate.build(
            template, f"{prefix}-image:v1", on_build_logs=lambda entry: lines.append(entry.message)
        )
    assert "a note" in lines, lines
    sandbox = await sdk.AsyncSandbox.create(f"{prefix}-image:v1", timeout=60)
    assert await sandbox.files.read("notes/note.txt") == "a note\n"
    assert (await sandbox.get_info()).template_id == info.template_id
    await sandbox.kill()


async def _in_background(sdk: Any, prefix: str) -> None:
    server = "python3 -m http.server 8000 --directory /etc"
    ready = sdk.wait_for_url("http://localhost:8000/passwd")
    template = sdk.AsyncTemplate().from_base_image().set_start_cmd(server, ready)
    info = await sdk.AsyncTemplate.build_in_background(template, f"{prefix}-base")
    status = await sdk.AsyncTemplate.get_build_status(info)
    assert status.status in ("building", "waiting"), status
    while status.status in ("building", "waiting"):
        await asyncio.sleep(0.1)
        status = await sdk.AsyncTemplate.get_build_status(info)
    assert status.status == "ready", status
    sandbox = await sdk.AsyncSandbox.create(f"{prefix}-base", timeout=60)
    assert "root:x" in (await sandbox.commands.run("curl -s localhost:8000/passwd")).stdout
    await sandbox.kill()


async def _failing(sdk: Any, prefix: str) -> None:
    template = sdk.AsyncTemplate().from_python_image().run_cmd("exit 3")
    build_exception = importlib.import_module(f"{sdk.__name__}.exceptions").BuildException
    try:
        await sdk.AsyncTemplate.build(template, f"{prefix}-failing")
    except build_exception as error:
        if "exit status 3" not in str(error):
            raise
    else:
        raise AssertionError("it was built")


async def _names_and_tags(sdk: Any, prefix: str) -> None:
    template, name = sdk.AsyncTemplate, f"{prefix}-image"
    assert await template.exists(name) is True
    assert await template.exists(f"{prefix}-never") is False
    given = await template.assign_tags(f"{name}:v1", ["stable", "v2"])
    assert {each.tag: each.build_id for each in await template.get_tags(name)} == dict.fromkeys(
        ["stable", "v1", "v2"], given.build_id
    )
    await template.remove_tags(name, ["stable", "v2"])
    assert [each.tag for each in await template.get_tags(name)] == ["v1"]


if __name__ == "__main__":
    print(json.dumps(asyncio.run(drive(*sys.argv[1:3]))))  # noqa: T201 - the answer
