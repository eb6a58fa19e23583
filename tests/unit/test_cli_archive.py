"""What a sandbox sends as a tar stream cannot reach outside of where it is unpacked."""

# ruff: noqa: ASYNC240 - a test waits for nothing else

from __future__ import annotations

import io
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from wardian.cli.archive import CopyFailed, Unpacker, pack

Members = list[tuple[tarfile.TarInfo, bytes]]


def member(name: str, content: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    """A member of any kind; a regular file unless ``fields`` say otherwise."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def stream(members: Members) -> bytes:
    """A tar stream of them, however odd they are."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w|") as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


async def unpack(root: Path, data: bytes, *, piece: int = 65536) -> list[str]:
    """Unpack ``data`` into ``root`` in pieces; what was skipped."""
    root.mkdir(exist_ok=True)
    unpacker = Unpacker(root)
    for at in range(0, len(data), piece):
        await unpacker.feed(data[at : at + piece])
    await unpacker.close()
    return unpacker.skipped


@pytest.mark.parametrize("piece", [1, 511, 65536])
async def test_a_directory_survives_the_round_trip(tmp_path: Path, piece: int) -> None:
    """Contents, permissions and links, however the stream is cut."""
    source = tmp_path / "source"
    (source / "sub/empty").mkdir(parents=True)
    (source / "data").write_bytes(bytes(range(256)) * 3)
    (source / "sub/run").write_text("#!/bin/sh\n")
    (source / "sub/run").chmod(0o750)
    (source / "sub/up").symlink_to("../data")
    data = b"".join([chunk async for chunk in pack(source)])
    target = tmp_path / "target"
    assert await unpack(target, data, piece=piece) == []
    assert (target / "data").read_bytes() == bytes(range(256)) * 3
    assert stat.S_IMODE((target / "sub/run").stat().st_mode) == 0o750
    assert (target / "sub/up").readlink() == Path("../data")
    assert (target / "sub/empty").is_dir()


HOSTILE: dict[str, Callable[[Path], Members]] = {
    "absolute path": lambda out: [member(f"{out}/pwned", b"x")],
    "parent path": lambda out: [member("../pwned", b"x")],
    "hidden parent path": lambda out: [member("a/../../pwned", b"x")],
    "symlink outside": lambda out: [
        member("l", type=tarfile.SYMTYPE, linkname=str(out)),
        member("l/pwned", b"x"),
    ],
    "symlink up": lambda out: [member("l", type=tarfile.SYMTYPE, linkname=".."), member("l/pwned", b"x")],
    "symlink through a symlink": lambda out: [
        member("d", type=tarfile.DIRTYPE, mode=0o755),
        member("d/l", type=tarfile.SYMTYPE, linkname="."),
        member("m", type=tarfile.SYMTYPE, linkname="d/l/../.."),
        member("m/pwned", b"x"),
    ],
    "file through a symlink": lambda out: [
        member("l", type=tarfile.SYMTYPE, linkname="../pwned"),
        member("l", b"x"),
    ],
    "hard link": lambda out: [member("l", type=tarfile.LNKTYPE, linkname=f"{out}/secret")],
    "device": lambda out: [member("d", type=tarfile.CHRTYPE, devmajor=1, devminor=3)],
    "fifo": lambda out: [member("f", type=tarfile.FIFOTYPE)],
}


@pytest.mark.parametrize("trick", HOSTILE)
async def test_nothing_lands_outside(tmp_path: Path, trick: str) -> None:
    """Every trick is skipped or stays harmless, and what comes after it is still unpacked."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    root = tmp_path / "outside/root"
    data = stream([*HOSTILE[trick](outside), member("innocent", b"fine")])
    await unpack(root, data)
    assert (root / "innocent").read_text() == "fine"
    assert sorted(path.name for path in outside.iterdir()) == ["root", "secret"]
    for path in root.rglob("*"):
        assert path.is_symlink() or path.is_file() or path.is_dir()
        assert path.resolve().is_relative_to(root.resolve())
        assert not path.is_file() or path.stat().st_nlink == 1


async def test_special_permission_bits_are_dropped(tmp_path: Path) -> None:
    """No setuid program of a stranger appears here."""
    await unpack(tmp_path / "root", stream([member("x", b"x", mode=0o6755)]))
    assert stat.S_IMODE((tmp_path / "root/x").stat().st_mode) == 0o755


async def test_an_existing_link_is_replaced_not_followed(tmp_path: Path) -> None:
    """Copying over a destination that has links in it writes none of their targets."""
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "mine").write_text("mine")
    (root / "x").symlink_to(tmp_path / "mine")
    await unpack(root, stream([member("x", b"theirs")]))
    assert (tmp_path / "mine").read_text() == "mine"
    assert (root / "x").read_text() == "theirs"


@pytest.mark.parametrize("data", [b"no tar at all" * 100, stream([member("x", b"y" * 5000)])[:2000]])
async def test_a_broken_stream_is_told(tmp_path: Path, data: bytes) -> None:
    """Rubbish, and a stream that ends half-way."""
    with pytest.raises(CopyFailed, match="cannot unpack"):
        await unpack(tmp_path / "root", data)


async def test_an_unreadable_source_is_told(tmp_path: Path) -> None:
    """The reason comes out at the end of the stream."""
    with pytest.raises(CopyFailed, match="cannot read"):
        _ = [chunk async for chunk in pack(tmp_path / "nothing")]
