"""A guest that lies about its files: nothing it says reaches beyond its own layer, and nothing is left."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

import pytest
from tests.guest.peer import Peer, scripted

from wardian.guest import carrying, frames
from wardian.guest.carrying import Content, Mounted, Node, Record, Removed, Same, encode
from wardian.images import tar
from wardian.images.compose import root_from_layers
from wardian.images.layers import GuestLied, capture_layer
from wardian.isolation.port import RootImage
from wardian.model.errors import GuestFault, LimitExceeded, WardianError

FILE, DIRECTORY, LINK = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777
ROOT = Node(b"", DIRECTORY)


class Liar:
    """Stands for a guest; tells what it is told to."""

    def __init__(self, *records: Record) -> None:
        self.records = records

    async def pack(self, *, hold: bool = False) -> AsyncGenerator[Sequence[Record]]:
        yield self.records


@pytest.fixture
def root(tmp_path: Path) -> RootImage:
    """/etc/passwd, /etc/group and /bin are in the image."""
    place = tmp_path / "image"
    place.mkdir()
    archive = b"".join(
        tar.header(tar.Member(path, mode))
        for path, mode in ((b"bin", DIRECTORY), (b"etc/group", FILE), (b"etc/passwd", FILE))
    )
    (place / "tar").write_bytes(archive + tar.END)
    made = root_from_layers([place / "tar"], place / "root")
    return RootImage(place / "root", made.digest)


@pytest.mark.parametrize(
    "records",
    [
        [],
        [Node(b"x", FILE)],
        [Same(b"etc/passwd")],
        [ROOT, Same(b"etc/passwd")],
        [ROOT, Same(b"bin")],
        [ROOT, Same(b"never")],
        [ROOT, Node(b"b", FILE), Node(b"a", FILE)],
        [ROOT, Node(b"a", FILE), Node(b"a", DIRECTORY)],
        [ROOT, Node(b"a", FILE), Node(b"a/b", FILE)],
        [ROOT, Node(b"a", LINK, target=b"/etc"), Node(b"a/b", FILE)],
        [ROOT, Node(b"a", DIRECTORY), Node(b"b", DIRECTORY), Node(b"a/c", FILE)],
        [ROOT, Node(b"a", FILE, link=b"etc/passwd")],
        [ROOT, Node(b"a", FILE, link=b"b"), Node(b"b", FILE)],
        [ROOT, Node(b"a", LINK, target=b"x"), Node(b"b", FILE, link=b"a")],
        [ROOT, Node(b"a", FILE, size=3), Content(1, b"abc")],
        [ROOT, Node(b"a", FILE, size=9), Content(3, b"abc"), Content(5, b"abc")],
        [ROOT, Node(b"a", FILE, size=9), Node(b"b", DIRECTORY), Content(0, b"abc")],
        [ROOT, Content(0, b"abc")],
        [ROOT, Node(b"proc", DIRECTORY)],
        [ROOT, Mounted(b"proc"), Node(b"proc/1", FILE)],
        [ROOT, Removed(b"etc")],
    ],
)
async def test_impossible_files_are_refused(tmp_path: Path, root: RootImage, records: list[Record]) -> None:
    with pytest.raises(GuestLied):
        await capture_layer(Liar(*records), root, tmp_path / "layer", size_max=1 << 20)  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == ["image"]


async def test_a_guest_cannot_forge_a_deletion(tmp_path: Path, root: RootImage) -> None:
    liar = Liar(ROOT, Node(b".wh.etc", FILE))
    with pytest.raises(LimitExceeded, match="cannot hold names"):
        await capture_layer(liar, root, tmp_path / "layer", size_max=1 << 20)  # type: ignore[arg-type]


async def test_sizes_are_bounded_before_they_are_believed(tmp_path: Path, root: RootImage) -> None:
    liar = Liar(ROOT, Node(b"a", FILE, size=1 << 62))
    with pytest.raises(LimitExceeded):
        await capture_layer(liar, root, tmp_path / "layer", size_max=1 << 20)  # type: ignore[arg-type]


def raw(tag: int, value: bytes) -> bytes:
    return frames.field(tag, value)


async def told(peer: Peer, root: RootImage, out: Path, payload: bytes) -> None:
    """Answer a PACK with these bytes."""
    capturing = asyncio.ensure_future(capture_layer(peer.guest, root, out, size_max=1 << 20))
    opened = await peer.on(frames.OPEN)
    await peer.send(frames.REPLY, opened.stream, bytes(4))
    for at in range(0, len(payload), 60000):
        await peer.send(frames.DATA, opened.stream, payload[at : at + 60000])
    if not peer.guest_is_done:
        await peer.send(frames.END, opened.stream, bytes(4))
    await capturing


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        encode(ROOT),
        encode(ROOT) + raw(5, b"") + encode(Node(b"a", FILE)),
        raw(1, b"\2\xff\xff\xff\xff"),
        raw(9, b""),
        raw(1, frames.field(2, b"../x") + frames.number(5, FILE, 4)),
        encode(Node(b"../x", FILE)),
        encode(Node(b"/x", FILE)),
        encode(Node(b"x", stat.S_IFSOCK | 0o644)),
        encode(Node(b"x", 0o7777777)),
        encode(Node(b"x", LINK)),
        encode(Node(b"x", FILE, xattrs={b"security.capability": b"x"})),
        raw(4, b"a\0b"),
        raw(2, b"short"),
        b"\1" + (1 << 30).to_bytes(4, "little"),
    ],
)
async def test_malformed_records_end_the_guest(tmp_path: Path, root: RootImage, payload: bytes) -> None:
    async with scripted() as peer:
        await peer.attached()
        with pytest.raises(GuestFault):
            await told(peer, root, tmp_path / "layer", payload)
        assert peer.faults
    assert os.listdir(tmp_path) == ["image"]


async def test_a_guest_that_stalls_is_not_waited_for(
    tmp_path: Path, root: RootImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carrying, "STALL_S", 0.05)
    async with scripted() as peer:
        await peer.attached()
        capturing = asyncio.ensure_future(
            capture_layer(peer.guest, root, tmp_path / "layer", size_max=1 << 20)
        )
        opened = await peer.on(frames.OPEN)
        await peer.send(frames.REPLY, opened.stream, bytes(4))
        await peer.send(frames.DATA, opened.stream, encode(ROOT))
        with pytest.raises(GuestFault, match="stalled"):
            await capturing
        assert (await peer.on(frames.CLOSE)).stream == opened.stream


async def test_a_guest_that_gives_up_says_why(tmp_path: Path, root: RootImage) -> None:
    failure = frames.number(4, 5, 4) + frames.field(2, b"/etc/x: Input/output error")
    async with scripted() as peer:
        await peer.attached()
        with pytest.raises(WardianError, match="Input/output error"):
            await told(peer, root, tmp_path / "layer", encode(ROOT) + raw(6, failure))
        assert not peer.faults
