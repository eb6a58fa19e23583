"""``runner.toml``: what a release says of itself. Strict: what it does not know, it refuses.

version = "1.4.2"
language = "python"                     # python, node or any
start = ["main.py"]                     # a file of the release, and arguments
self_test = ["main.py", "--self-test"]  # the same; it has to end with 0
self_test_s = 10                        # within so many seconds
imports = ["harness"]                   # modules (node: files) that must load; not with any
name = "harness"                        # if `--name` is not given
native = true                           # it has native extensions, and knows where they load
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wardian.model.agent import NAME
from wardian.model.errors import Invalid
from wardian.model.runner import Language

FILE = "runner.toml"
BYTES_MAX = 64 << 10
_Word = Annotated[str, Field(max_length=4096, pattern=r"^[^\x00]*$")]
_Command = Annotated[list[_Word], Field(min_length=1, max_length=64)]


class BadRunner(Invalid):
    """What cannot be released, and why."""

    code = "bad_runner"


@dataclass(frozen=True, slots=True)
class Manifest:
    """A release's own words. Commands begin with a file of it."""

    version: str
    language: Language
    start: tuple[str, ...]
    self_test: tuple[str, ...]
    self_test_s: int
    imports: tuple[str, ...]
    name: str | None
    native: bool


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    version: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$")]
    language: Literal["python", "node", "any"]
    start: _Command
    self_test: _Command
    self_test_s: Annotated[int, Field(ge=1, le=60)] = 10
    imports: Annotated[list[_Word], Field(max_length=256)] = []
    name: Annotated[str, Field(pattern=f"^(?:{NAME.pattern})$")] | None = None
    native: bool = False


def parse(raw: bytes) -> Manifest:
    """Raise :class:`BadRunner` for anything that is not exactly what is above."""
    if len(raw) > BYTES_MAX:
        raise BadRunner(f"{FILE} is larger than {BYTES_MAX >> 10} KiB")
    try:
        said = _Table.model_validate(tomllib.loads(raw.decode()))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadRunner(f"{FILE}: {error}") from None
    except ValidationError as error:
        first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
        where = ".".join(map(str, first["loc"]))
        known = ", ".join(_Table.model_fields)
        unknown = first["type"] == "extra_forbidden"
        raise BadRunner(
            f"{FILE}: {where}: {'there is no such key' if unknown else first['msg']}",
            code="unknown_key" if unknown else None,
            hint=f"its keys are {known}",
        ) from None
    language = Language(said.language)
    if bool(said.imports) is (language is Language.ANY):
        raise BadRunner(
            f"{FILE}: imports: what must load, one at least, of a runner in python or node; nothing of any"
        )
    return Manifest(
        said.version,
        language,
        tuple(said.start),
        tuple(said.self_test),
        said.self_test_s,
        tuple(said.imports),
        said.name,
        said.native,
    )


__all__ = ["FILE", "BadRunner", "Manifest", "parse"]
