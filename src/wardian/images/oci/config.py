"""What an OCI image says about how it wants to be run. Read strictly: it comes from strangers."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from wardian.model.errors import Invalid

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
"""Processors as ``uname`` and as OCI call them."""

WORDS_MAX, WORD_MAX = 4096, 128 * 1024
NANOSECONDS = 1_000_000_000
_PORT = re.compile(r"(\d{1,5})(?:/(tcp|udp))?")


class ImageInvalid(Invalid):
    """This is no image, or not one that can be run here."""

    code = "image_invalid"


@dataclass(frozen=True, slots=True)
class Healthcheck:
    """``test`` as Docker writes it: ("CMD", …), ("CMD-SHELL", command) or ("NONE",). Times in seconds."""

    test: tuple[str, ...]
    interval_s: float = 30.0
    timeout_s: float = 30.0
    start_period_s: float = 0.0
    retries: int = 3


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """How an image wants to be run. ``workdir`` and ``user`` are "" where it does not say.

    ``certificates`` is where its certificate authorities are; "": there are none, TLS fails inside.
    """

    env: Mapping[str, str] = field(default_factory=dict)
    workdir: str = ""
    user: str = ""
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    shell: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    healthcheck: Healthcheck | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    certificates: str = ""

    def as_json(self) -> dict[str, Any]:
        """For the manifest of a built image."""
        return asdict(self)

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> ImageConfig:
        """What :meth:`as_json` gave."""
        check = facts["healthcheck"]
        lists = {name: tuple(facts[name]) for name in ("entrypoint", "cmd", "shell", "ports")}
        health = Healthcheck(**{**check, "test": tuple(check["test"])}) if check else None
        return cls(**{**facts, **lists, "healthcheck": health})


def host_architecture() -> str:
    """This host's processor in OCI's words."""
    machine = os.uname().machine
    return ARCHITECTURES.get(machine, machine)


def read_config(document: Mapping[str, Any]) -> ImageConfig:
    """The part of an image's configuration that says how to run it.

    Raises :class:`ImageInvalid` for what is malformed, and for an image made for another processor.
    """
    system, processor = document.get("os"), document.get("architecture")
    if (system, processor) != ("linux", host_architecture()):
        raise ImageInvalid(
            f"the image is for {system}/{processor}, and this host runs linux/{host_architecture()}",
            code="image_architecture",
            hint="choose an image that has been built for this processor",
        )
    config = document.get("config") or {}
    if not isinstance(config, dict):
        raise ImageInvalid("the image's `config` is no object")
    return ImageConfig(
        env=_environment(_words(config, "Env")),
        workdir=_word(config, "WorkingDir"),
        user=_word(config, "User"),
        entrypoint=_words(config, "Entrypoint"),
        cmd=_words(config, "Cmd"),
        shell=_words(config, "Shell"),
        ports=_ports(config.get("ExposedPorts")),
        healthcheck=_healthcheck(config.get("Healthcheck")),
        labels=_labels(config.get("Labels")),
    )


def _word(config: Mapping[str, Any], name: str) -> str:
    return _text(config.get(name) or "", name)


def _words(config: Mapping[str, Any], name: str) -> tuple[str, ...]:
    found = config.get(name)
    if found is None:
        return ()
    if not isinstance(found, list) or len(found) > WORDS_MAX:
        raise ImageInvalid(f"the image's {name} is no list of words")
    return tuple(_text(word, name) for word in found)


def _text(value: object, name: str) -> str:
    if not isinstance(value, str) or len(value) > WORD_MAX or "\0" in value:
        raise ImageInvalid(f"the image's {name} holds something that is no text")
    return value


def _environment(pairs: Sequence[str]) -> dict[str, str]:
    """Later ones win; what has no name is left out, as container engines do."""
    split = (pair.partition("=") for pair in pairs)
    return {name: value for name, _, value in split if name}


def _ports(exposed: object) -> tuple[int, ...]:
    """The TCP ports. UDP does not reach a sandbox from outside."""
    if exposed is None:
        return ()
    if not isinstance(exposed, dict):
        raise ImageInvalid("the image's ExposedPorts is no object")
    found = set()
    for text in exposed:
        match = _PORT.fullmatch(text)
        if not match or not 0 < int(match[1]) <= 0xFFFF:
            raise ImageInvalid(f"the image exposes {text[:80]!r}, which is no port")
        if match[2] != "udp":
            found.add(int(match[1]))
    return tuple(sorted(found))


def _healthcheck(check: object) -> Healthcheck | None:
    if not isinstance(check, dict) or not check.get("Test"):
        return None
    plain = Healthcheck(_words(check, "Test"))

    def seconds(name: str, otherwise: float) -> float:
        value = check.get(name) or 0
        if not isinstance(value, int) or value < 0:
            raise ImageInvalid(f"the health check's {name} is no time")
        return value / NANOSECONDS if value else otherwise

    retries = check.get("Retries") or plain.retries
    if not isinstance(retries, int) or retries < 0:
        raise ImageInvalid("the health check's Retries is no number")
    return Healthcheck(
        plain.test,
        interval_s=seconds("Interval", plain.interval_s),
        timeout_s=seconds("Timeout", plain.timeout_s),
        start_period_s=seconds("StartPeriod", plain.start_period_s),
        retries=retries,
    )


def _labels(labels: object) -> dict[str, str]:
    if labels is None:
        return {}
    if not isinstance(labels, dict) or len(labels) > WORDS_MAX:
        raise ImageInvalid("the image's Labels is no object")
    return {_text(name, "Labels"): _text(value, "Labels") for name, value in labels.items()}
