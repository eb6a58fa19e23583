"""Captured machines: everything in them survives, in as many clones and generations as wanted."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from tests.contract.harness import IMAGE_FILES, House, Member, lines_of

from wardian.guest.guest import Process
from wardian.isolation.port import ImageRefused, MachineImage


async def _keeper(member: Member) -> tuple[Process, AsyncIterator[str]]:
    process = await member.start("/bin/inside", "keep")
    lines = lines_of(process)
    assert await anext(lines) == "ready"
    return process, lines


async def _check(process: Process, lines: AsyncIterator[str], generation: int) -> None:
    await process.write(b"check\n")
    assert await anext(lines) == f"good {generation}"


async def test_a_machine_goes_on_after_a_capture(house: House, tmp_path: Path) -> None:
    member = await house.start()
    process, lines = await _keeper(member)
    image = await member.capture(tmp_path / "image", keep_running=True)
    assert {name: (image.directory / name).stat().st_size for name in image.files} == dict(image.files)
    await _check(process, lines, 1)


async def test_a_frozen_machine_stays_frozen_through_a_capture(house: House, tmp_path: Path) -> None:
    member = await house.start()
    process, lines = await _keeper(member)
    await member.guest.quiesce()
    await member.machine.freeze()
    (tmp_path / "image").mkdir()
    image = await member.machine.capture(tmp_path / "image", keep_running=True)
    assert member.machine.frozen
    await member.machine.thaw()
    await member.guest.unquiesce()
    await _check(process, lines, 1)
    clone = await house.restore(image)
    assert await clone.sh("echo clone") == "clone\n"


async def test_a_capture_can_end_the_machine(house: House, tmp_path: Path) -> None:
    member = await house.start()
    image = await member.capture(tmp_path / "image", keep_running=False)
    assert (await member.machine.wait()).reason == "killed"
    clone = await house.restore(image)
    assert await clone.sh("echo clone") == "clone\n"


async def test_everything_survives_four_generations(house: House, tmp_path: Path) -> None:
    """Files, offsets, pipes, ptys, sockets with queued data, listeners, shared memory, threads, children."""
    member = await house.start()
    process, lines = await _keeper(member)
    await _check(process, lines, 1)
    for generation in range(2, 6):
        image = await member.capture(tmp_path / f"image-{generation}", keep_running=False)
        clone = await house.restore(image)
        process = clone.guest.processes[process.pid]
        lines = lines_of(process)
        await _check(process, lines, generation)
        assert await clone.sh("echo and new programs run") == "and new programs run\n"
        member = clone


async def test_many_clones_of_one_image_at_once(house: House, tmp_path: Path) -> None:
    member = await house.start()
    pid = (await _keeper(member))[0].pid
    image = await member.capture(tmp_path / "image", keep_running=True)
    clones = await asyncio.gather(*(house.restore(image) for _ in range(4)))
    for number, clone in enumerate([member, *clones]):
        process = clone.guest.processes[pid]
        await _check(process, lines_of(process), 1)
        await clone.sh(f"echo {number} > /root/number")
    for number, clone in enumerate([member, *clones]):
        assert await clone.sh("cat /root/number") == f"{number}\n"


async def test_a_busy_machine_can_be_captured(house: House, tmp_path: Path) -> None:
    member = await house.start()
    await member.start("/bin/inside", "burn")
    await member.start("/bin/sh", "-c", "while :; do echo x >> /root/log; done")
    await member.sh("while ! test -s /root/log; do :; done")
    image = await member.capture(tmp_path / "image", keep_running=True)
    clone = await house.restore(image)
    assert await clone.sh("test -s /root/log && echo logged") == "logged\n"
    assert await member.sh("echo busy") == "busy\n"


async def test_a_failed_capture_leaves_the_machine_running(house: House, tmp_path: Path) -> None:
    member = await house.start()
    (tmp_path / "image").mkdir()
    (tmp_path / "image" / IMAGE_FILES[house.driver.name][0]).touch()
    for keep_running in (True, False):
        with pytest.raises(OSError, match="exists"):
            await member.machine.capture(tmp_path / "image", keep_running=keep_running)
        assert await member.sh("echo alive") == "alive\n"


async def test_a_cancelled_capture_leaves_the_machine_running(house: House, tmp_path: Path) -> None:
    member = await house.start()
    await member.sh("head -c 30000000 /dev/zero > /root/file")
    directory = tmp_path / "image"
    directory.mkdir()
    capturing = asyncio.ensure_future(member.machine.capture(directory, keep_running=False))
    for _ in range(3):  # far enough to have asked, not far enough to have finished
        await asyncio.sleep(0)
    capturing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await capturing
    assert await member.sh("echo alive") == "alive\n"


Damage = Callable[[MachineImage], MachineImage]


def _cut(at: int) -> Damage:
    def cut(image: MachineImage) -> MachineImage:
        path = image.directory / IMAGE_FILES[image.driver][at]
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size // 2)
        return image

    return cut


def _remove(image: MachineImage) -> MachineImage:
    (image.directory / IMAGE_FILES[image.driver][-1]).unlink()
    return image


def _scramble(image: MachineImage) -> MachineImage:
    path = image.directory / IMAGE_FILES[image.driver][0]
    data = bytearray(path.read_bytes())
    for at in range(0, len(data), 97):
        data[at] ^= 0xFF
    path.write_bytes(data)
    return image


FOREIGN: dict[str, Damage] = {
    "a short file": _cut(-1),
    "another short file": _cut(0),
    "a missing file": _remove,
    "scrambled content": _scramble,
    "another build": lambda image: dataclasses.replace(image, build="sha256:0+other.1"),
    "another driver": lambda image: dataclasses.replace(image, driver="other"),
    "another root": lambda image: dataclasses.replace(image, root_digest="sha256:0"),
    "a better CPU": lambda image: dataclasses.replace(image, cpu_features=frozenset({"avx8192"})),
    "an unknown file": lambda image: dataclasses.replace(image, files={**image.files, "more": 1}),
}


async def test_a_damaged_or_foreign_image_is_refused(house: House, tmp_path: Path) -> None:
    member = await house.start()
    for number, (name, damage) in enumerate(FOREIGN.items()):
        image = damage(await member.capture(tmp_path / f"image-{number}", keep_running=True))
        prepared = await house.prepare()
        with pytest.raises(ImageRefused) as refusal:
            await prepared.restore(image)
        assert refusal.value.code == "image_refused", name
        await prepared.discard()
    assert await member.sh("echo unharmed") == "unharmed\n"


async def test_a_refused_image_spoils_nothing_but_the_try(house: House, tmp_path: Path) -> None:
    """Refusals that need no try leave the prepared machine usable."""
    member = await house.start()
    image = await member.capture(tmp_path / "image", keep_running=True)
    prepared = await house.prepare()
    with pytest.raises(ImageRefused):
        await prepared.restore(dataclasses.replace(image, build="other"))
    clone = await house.move_in(await prepared.restore(image), clone=True)
    assert await clone.sh("echo clone") == "clone\n"
