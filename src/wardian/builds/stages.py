"""One stage: its steps on its base, as far as the layer cache does not have them already.

A machine is only made when there is something left to do. It begins with the deepest layer that is known,
and after each RUN and COPY what differs from the root image is captured as the layer of that step's key. So
a stage's outcome is always one root image and at most one layer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Protocol

from wardian.builds.cache import LayerCache
from wardian.builds.errors import describe, shortened
from wardian.builds.keys import Keyed, chain
from wardian.builds.steps import Hand, OpenTree
from wardian.guest.guest import Guest
from wardian.images.layers import apply_layer, capture_layer
from wardian.isolation.port import RootImage
from wardian.model.build import Stage, StepKind, Surroundings
from wardian.sandboxes.benches import Bench

_CHANGING = frozenset({StepKind.RUN, StepKind.COPY, StepKind.WORKDIR, StepKind.USER})
_CAPTURED = frozenset({StepKind.RUN, StepKind.COPY})


class Say(Protocol):
    """Takes a line for the build's log, and the step it belongs to ("2/7", or "")."""

    def __call__(self, message: str, step: str = "") -> None: ...


@dataclass(frozen=True, slots=True)
class Ground:
    """Where a stage has got to: a root image, what differs from it, and what its processes start with.

    ``start`` and ``ready`` are what the base says; ``facts`` say what it is, for the lock.
    """

    root: RootImage
    key: str
    surroundings: Surroundings
    layer: Path | None = None
    start: str = ""
    ready: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Workplace:
    """What every stage of one build works with."""

    tenant: str
    cache: LayerCache
    make_bench: Callable[[RootImage], AbstractAsyncContextManager[Bench]]
    equip: Callable[[Guest], AbstractAsyncContextManager[Mapping[str, str]]]
    open_tree: OpenTree
    digest_of: Callable[[str], str]
    layer_max: int  # bytes
    force: bool
    say: Say


@dataclass(slots=True)
class Count:
    """Numbers the steps of a build through all its stages."""

    total: int
    done: int = 0

    def next(self) -> str:
        self.done += 1
        return f"{self.done}/{self.total}"


async def carry_out(
    work: Workplace, ground: Ground, stage: Stage, count: Count
) -> tuple[Ground, Sequence[str]]:
    """Where the stage ends, and the keys of its steps. Raises :class:`BuildFailed`."""
    keyed, surroundings = chain(ground.key, ground.surroundings, stage.steps, work.digest_of)
    keys = [each.key for each in keyed]
    known, layer = _deepest(work, keyed, ground.layer)
    for each in keyed[:known]:
        work.say(f"CACHED {_words(each)}", count.next())
    left = keyed[known:]
    if any(each.step.kind in _CHANGING for each in left):
        layer = await _work(work, ground.root, layer, left, count)
    else:
        for each in left:
            work.say(_words(each), count.next())
    key = keys[-1] if keys else ground.key
    return replace(ground, key=key, surroundings=surroundings, layer=layer), keys


def _deepest(work: Workplace, keyed: Sequence[Keyed], layer: Path | None) -> tuple[int, Path | None]:
    """How many steps need not be carried out, and the layer that holds them."""
    usable = len(keyed)
    for number, each in enumerate(keyed):
        if work.force or each.step.force:
            usable = number
            break
    for number in range(usable, 0, -1):
        found = work.cache.find(work.tenant, keyed[number - 1].key)
        if found is not None:
            return number, found
    return 0, layer


async def _work(
    work: Workplace, root: RootImage, layer: Path | None, left: Sequence[Keyed], count: Count
) -> Path | None:
    """Carry out what is left, in a machine; returns the last layer."""
    last = max(number for number, each in enumerate(left) if each.step.kind in _CHANGING)
    uncaptured = False
    async with work.make_bench(root) as bench, work.equip(bench.guest) as secrets:
        guest = bench.guest
        if layer is not None:
            await apply_layer(guest, layer)
        for number, each in enumerate(left):
            place = count.next()
            work.say(_words(each), place)
            hand = Hand(guest, work.open_tree, partial(work.say, step=place), secrets)
            uncaptured |= await hand.carry_out(each, place)
            if uncaptured and (each.step.kind in _CAPTURED or number == last):
                layer = await _capture(work, guest, root, each)
                uncaptured = False
            elif layer is not None and not uncaptured:
                layer = work.cache.alias(layer, work.tenant, each.key)
    return layer


async def _capture(work: Workplace, guest: Guest, root: RootImage, each: Keyed) -> Path:
    path = work.cache.place(work.tenant, each.key)
    await asyncio.to_thread(path.parent.mkdir, parents=True, exist_ok=True)
    await capture_layer(guest, root, path, size_max=work.layer_max)
    return path


def _words(each: Keyed) -> str:
    return shortened(each.step.text or describe(each.step))
