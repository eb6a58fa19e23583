"""PACK and UNPACK by the sanitized agent: what is told of a tree makes the same; nothing leads out of it."""

from __future__ import annotations

import os
import socket
import stat
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tests.guest import wire
from tests.guest.conftest import Agent

from wardian.guest.carrying import CHUNK, Content, Node, Record, Removed, encode, order
from wardian.guest.carrying import _parse as parse
from wardian.guest.frames import FieldReader

PACK, UNPACK = 0x40, 0x41
FILE, DIRECTORY = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755


def transfer(agent: Agent, op: int, sent: bytes = b"") -> list[tuple[int, bytes]]:
    """Open a stream, send, and give the records that came back."""
    link, stream = agent.wire.link, 101 + 2 * op

    def send(kind: int, payload: bytes) -> None:
        link.send(struct.pack("<BBHI", kind, 0, 0, stream) + payload)

    send(wire.OPEN, bytes([op]))
    window, pieces = wire.FULL_WINDOW, [sent[at : at + 60000] for at in range(0, len(sent), 60000)]
    reader, eof = FieldReader(1 << 20), op == PACK
    records: list[tuple[int, bytes]] = []
    link.settimeout(20)
    while True:
        while pieces and len(pieces[0]) <= window:
            window -= len(pieces[0])
            send(wire.DATA, pieces.pop(0))
        if not pieces and not eof:
            send(wire.EOF, b"")
            eof = True
        packet = link.recv(1 << 17)
        assert packet, "the agent hung up"
        kind, body = packet[0], packet[8:]
        if struct.unpack_from("<I", packet, 4)[0] != stream:
            continue
        if kind == wire.DATA:
            records += list(reader.feed(body))
            send(wire.WINDOW, wire.u32(len(body)))
        elif kind == wire.WINDOW:
            window += wire.number(body)
        elif kind == wire.END:
            assert body == bytes(4)
            reader.finish()
            return records


def pack(agent: Agent) -> list[Record]:
    records = transfer(agent, PACK)
    assert records[-1] == (5, b"")
    return [parse(tag, value) for tag, value in records[:-1]]


def unpack(agent: Agent, records: Sequence[Record], end: bytes | None = None) -> str:
    """What went wrong, or "" when all is made."""
    sent = b"".join(map(encode, records)) + (wire.field(5, b"") if end is None else end)
    answers = transfer(agent, UNPACK, sent)
    if answers == [(5, b"")]:
        return ""
    assert len(answers) <= 1
    return answers[0][1].decode("utf-8", "replace") if answers else "died"


def furnish(home: Path) -> None:
    tree = home / "srv"
    tree.mkdir()
    (tree / "empty").touch()
    (tree / "large").write_bytes(os.urandom(3 * CHUNK + 17))
    (tree / "odd\nname").write_text("x")
    (tree / "set").write_text("#!")
    os.chown(tree / "set", 12, 34)
    (tree / "set").chmod(0o6755)
    with (tree / "sparse").open("wb") as file:
        file.seek(1 << 30)
        file.write(b"end")
    (tree / "loop").symlink_to("loop")
    (tree / "up").symlink_to("../../../../etc/passwd")
    os.link(tree / "set", tree / "twin")
    os.link(tree / "loop", tree / "loop2", follow_symlinks=False)
    os.mkfifo(tree / "fifo", 0o620)
    os.mknod(tree / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as nobody:
        nobody.bind(str(tree / "socket"))
    deep = tree
    for number in range(60):
        deep = deep / f"level{number}"
        deep.mkdir()
    (deep / "bottom").write_text("deep")
    os.utime(tree / "large", ns=(1, 1_234_567_890_123_456_789))
    os.utime(deep, ns=(1, 5_000_000_000))
    many = tree / "many"
    many.mkdir()
    for number in range(3000):
        (many / f"{number}").touch()


def image(home: Path) -> dict[str, object]:
    """Everything a packed tree should have."""
    seen: dict[str, object] = {}
    for directory, below, files in os.walk(home / "srv"):
        for name in [".", *below, *files]:
            path = Path(directory) / name
            info = path.lstat()
            if stat.S_ISSOCK(info.st_mode):
                continue
            content: object = None
            if stat.S_ISLNK(info.st_mode):
                content = os.readlink(path)
            elif stat.S_ISREG(info.st_mode) and info.st_size < 1 << 20:
                content = path.read_bytes()
            size = info.st_size if stat.S_ISREG(info.st_mode) else 0
            key = str(path.relative_to(home))
            seen[key] = (
                info.st_mode,
                info.st_uid,
                info.st_gid,
                info.st_mtime_ns,
                size,
                info.st_rdev,
                content,
            )
    return seen


def test_what_is_told_makes_the_same_tree(start_agent: Callable[..., Agent]) -> None:
    first, second = start_agent(), start_agent()
    first.wire.attach()
    second.wire.attach()
    furnish(first.home)
    told = pack(first)
    paths = [order(record.path) for record in told if isinstance(record, Node)]
    assert paths == sorted(set(paths))
    assert sum(len(record.data) for record in told if isinstance(record, Content)) < 1 << 20
    srv = [record for record in told if not isinstance(record, Node) or record.path.startswith(b"srv")]
    start = next(index for index, record in enumerate(srv) if isinstance(record, Node))
    assert unpack(second, srv[start:]) == ""
    assert image(second.home) == image(first.home)
    assert (second.home / "srv/set").samefile(second.home / "srv/twin")


def test_what_is_in_the_way_gives_way(agent: Agent) -> None:
    (agent.home / "a/b").mkdir(parents=True)
    (agent.home / "a/b/c").write_text("old")
    (agent.home / "f").write_text("old")
    (agent.home / "gone/x").mkdir(parents=True)
    (agent.home / "link").symlink_to("/etc")
    records: list[Record] = [
        Node(b"a", FILE, size=3),
        Content(0, b"new"),
        Node(b"f", DIRECTORY),
        Node(b"f/g", FILE),
        Removed(b"gone"),
        Removed(b"never"),
        Node(b"link", DIRECTORY),
        Node(b"link/own", FILE),
    ]
    assert unpack(agent, records) == ""
    assert (agent.home / "a").read_text() == "new"
    assert (agent.home / "f/g").read_text() == ""
    assert not (agent.home / "gone").exists()
    assert (agent.home / "link/own").exists()
    assert not Path("/etc/own").exists()


@pytest.mark.parametrize(
    "records",
    [
        [Node(b"..", FILE)],
        [Node(b"a/../../x", FILE)],
        [Node(b"/abs", FILE)],
        [Node(b"a//b", FILE)],
        [Node(b"", FILE)],
        [Node(b"nowhere/x", FILE)],
        [Node(b"out/x", FILE)],
        [Removed(b"out/etc")],
        [Removed(b"..")],
        [Removed(b"")],
        [Node(b"x", FILE, link=b"../../etc/passwd")],
        [Node(b"x", FILE, link=b"out/passwd")],
        [Node(b"x", FILE, size=3), Content(1, b"abc")],
        [Node(b"x", FILE, size=3), Content(2**64 - 1, b"abc")],
        [Content(0, b"abc")],
        [Node(b"x", FILE, xattrs={b"trusted.x": b""})],
        [Node(b"n" * 256, FILE)],
        [Node(b"x", 0o177777)],
    ],
)
def test_nothing_leads_out(agent: Agent, records: list[Record]) -> None:
    (agent.home / "out").symlink_to("/etc")
    before = sorted(os.listdir("/etc"))
    assert unpack(agent, records) != ""
    assert sorted(os.listdir("/etc")) == before
    assert not (agent.home.parent / "x").exists()


def test_rubbish_and_a_stream_without_end_are_survived(agent: Agent) -> None:
    assert unpack(agent, [], end=b"\1\xff\xff\xff\xff") == "died"
    assert unpack(agent, [], end=wire.field(1, b"\2\0")) != ""
    assert unpack(agent, [], end=wire.field(77, b"")) != ""
    assert unpack(agent, [Node(b"x", FILE)], end=b"") == "died"
    assert unpack(agent, [Node(b"y", FILE)]) == ""
