"""Secrets as the official SDK has them, and as the command line does."""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from e2b import AsyncSecret, Secret
from e2b.exceptions import SecretException, SecretNotFoundException
from tests.acceptance.conftest import Server

Done = Callable[[Any], Awaitable[Any]]
VALUE = "sk-correct-horse-battery"


@pytest.fixture(params=[Secret, AsyncSecret])
def face(request: pytest.FixtureRequest, server: Server) -> Any:
    return request.param


async def _names(face: Any, done: Done, limit: int) -> list[str]:
    pages, found = face.list(limit=limit), []
    while pages.has_next:
        found += [each.name for each in await done(pages.next_items())]
    return found


async def test_a_secrets_life(face: Any, done: Done) -> None:
    name = f"Key-{uuid.uuid4().hex[:8]}"
    made = await done(face.create(name, VALUE, metadata={"for": "tests"}))
    assert (made.name, made.version, made.metadata) == (name.lower(), 1, {"for": "tests"})
    updated = await done(face.update(name, VALUE + "2"))
    assert (updated.secret_id, updated.version, updated.metadata) == (made.secret_id, 2, {"for": "tests"})
    assert updated.created_at == made.created_at < updated.updated_at
    assert (await done(face.get_info(made.secret_id))) == (await done(face.get_info(name)))
    with pytest.raises(SecretException, match="409"):
        await done(face.create(name, VALUE))
    with pytest.raises(SecretNotFoundException):
        await done(face.update("no-such", VALUE))
    assert await done(face.exists(name))
    assert await done(face.destroy(name)) is True
    assert await done(face.destroy(name)) is False
    assert not await done(face.exists(made.secret_id))


async def test_pages(face: Any, done: Done) -> None:
    names = [f"page-{i}-ü" for i in range(5)]
    for name in names:
        await done(face.create(name, VALUE))
    assert [each for each in await _names(face, done, 2) if each in names] == names
    for name in names:
        await done(face.destroy(name))


def test_the_command_line_never_shows_or_takes_a_value_in_the_open(server: Server) -> None:
    def wardian(*arguments: str, stdin: str = "") -> str:
        done = subprocess.run(
            [sys.executable, "-m", "wardian.cli.main", "secret", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        return done.stdout + done.stderr

    said = wardian("set", "cli-key", stdin=VALUE + "\n")
    said += wardian("set", "cli-key", "--json", stdin=VALUE)
    said += wardian("ls")
    said += wardian("rm", "cli-key")
    assert "version 1" in said
    assert '"currentVersion": 2' in said
    assert VALUE not in said


def test_no_value_is_anywhere_in_the_data_directory(server: Server) -> None:
    made = Secret.create("everywhere", VALUE)
    Secret.update("everywhere", VALUE)
    with pytest.raises(SecretException):
        Secret.create("everywhere", VALUE)
    try:
        for path in server.data.rglob("*"):
            if path.is_file() and "gvisor" not in path.parts:
                assert VALUE.encode() not in path.read_bytes(), path
    finally:
        Secret.destroy(made.secret_id)
