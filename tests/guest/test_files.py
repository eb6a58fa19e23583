"""Files, trees and watches, against the sanitized agent."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from tests.guest.conftest import Agent
from tests.guest.wire import (
    CLOSE,
    DATA,
    END,
    EVENT,
    FULL_WINDOW,
    LIST,
    MKDIR,
    MOVE,
    READ,
    REMOVE,
    REPLY,
    STAT,
    SYNC_WATCH,
    WATCH,
    WINDOW,
    WRITE,
    Entry,
    Frame,
    Wire,
    entry,
    field,
    fields,
    number,
    u8,
    u32,
    u64,
)

CREATE, CHANGED, REMOVED, RENAMED, CHMOD, OVERFLOW = range(1, 7)


def entry_of(frame: Frame) -> Entry:
    assert frame.errno == 0, frame
    return entry(frame.values[30])


def listing(wire: Wire, path: Path | str, depth: int, user: str = "root") -> list[Entry]:
    stream = wire.open(LIST, field(1, user), field(2, str(path)), field(6, u32(depth)))
    assert wire.on(stream, REPLY).errno == 0
    channels, end = wire.output(stream)
    assert end.errno == 0
    pairs = fields(channels.get(0, b""))
    assert {tag for tag, _ in pairs} <= {30}
    return [entry(value) for _, value in pairs]


def xattrs_work(path: Path) -> bool:
    try:
        os.setxattr(path, "user.test", b"1")
    except OSError:
        return False
    return True


def test_stat(agent: Agent) -> None:
    home = agent.home / "home/user"
    (home / "f.txt").write_bytes(b"four")
    os.chmod(home / "f.txt", 0o640)
    os.chown(home / "f.txt", 1000, 2000)
    found = entry_of(agent.wire.path(STAT, "f.txt", user="user"))
    assert found == Entry("f.txt", 1, str(home / "f.txt"), 4, 0o640, "user", "extra", None, {})
    for path in ("~/f.txt", "./x/../f.txt", "//" + str(home) + "/./f.txt/"):
        assert entry_of(agent.wire.path(STAT, path, user="user")).path == str(home / "f.txt")
    assert entry_of(agent.wire.path(STAT, "", user="user")).path == str(home)
    root = entry_of(agent.wire.path(STAT, "/../.."))
    assert (root.name, root.path, root.type) == ("/", "/", 2)
    os.chown(home / "f.txt", 4242, 4243)
    numbers = entry_of(agent.wire.path(STAT, "f.txt", user="user"))
    assert (numbers.owner, numbers.group) == ("4242", "4243")
    assert agent.wire.path(STAT, "missing").errno == errno.ENOENT
    assert agent.wire.path(STAT, "x", user="nobody-here").errno == errno.EINVAL


def test_symlinks(agent: Agent) -> None:
    (agent.home / "d").mkdir()
    (agent.home / "to-d").symlink_to("d")
    (agent.home / "dangling").symlink_to("nowhere")
    wire = agent.wire
    link = entry_of(wire.path(STAT, str(agent.home / "to-d")))
    assert (link.type, link.target) == (2, str(agent.home / "d"))
    dangling = entry_of(wire.path(STAT, str(agent.home / "dangling")))
    assert (dangling.type, dangling.target) == (3, str(agent.home / "dangling"))


def test_users_are_read_again_when_they_change(agent: Agent) -> None:
    assert agent.wire.path(STAT, "~", user="late").errno == errno.EINVAL
    with (agent.home / "etc/passwd").open("a") as passwd:
        passwd.write("late:x:3000:3000::/:/bin/sh\n")
    assert entry_of(agent.wire.path(STAT, "~", user="late")).path == "/"


def test_mkdir(agent: Agent) -> None:
    wire = agent.wire
    made = entry_of(wire.path(MKDIR, "a/b/c", user="user"))
    assert (made.name, made.type, made.mode, made.owner) == ("c", 2, 0o755, "user")
    assert (agent.home / "home/user/a").stat().st_uid == 1000
    assert wire.path(MKDIR, "a/b/c", user="user").errno == errno.EEXIST
    (agent.home / "file").touch()
    assert wire.path(MKDIR, str(agent.home / "file")).errno == errno.ENOTDIR
    assert wire.path(MKDIR, str(agent.home / "file/x")).errno == errno.ENOTDIR


def test_move(agent: Agent) -> None:
    wire = agent.wire
    (agent.home / "root/a").write_bytes(b"1")
    moved = entry_of(wire.path(MOVE, "a", field(3, "new/dir/b")))
    assert moved.path == str(agent.home / "root/new/dir/b")
    assert wire.path(MOVE, "a", field(3, "c")).errno == errno.ENOENT
    assert not (agent.home / "root/c").exists()
    assert wire.path(MOVE, "new").errno == errno.EINVAL


def test_remove(agent: Agent) -> None:
    wire = agent.wire
    tree = agent.home / "tree"
    for index in range(300):
        (tree / f"{index % 7}/{index % 3}").mkdir(parents=True, exist_ok=True)
        (tree / f"{index % 7}/{index % 3}/{index}").touch()
    (agent.home / "kept").mkdir()
    (agent.home / "kept/file").touch()
    (tree / "link").symlink_to(agent.home / "kept")
    assert wire.path(REMOVE, str(tree)).errno == 0
    assert not tree.exists()
    assert (agent.home / "kept/file").exists(), "links are not followed"
    assert wire.path(REMOVE, str(tree)).errno == 0
    (agent.home / "link").symlink_to("kept")
    assert wire.path(REMOVE, str(agent.home / "link")).errno == 0
    assert (agent.home / "kept").exists()
    assert wire.path(REMOVE, "/").errno == errno.EBUSY
    assert wire.path(REMOVE, "/x/../..").errno == errno.EBUSY


def test_remove_a_very_deep_tree(agent: Agent) -> None:
    top = agent.home / "deep"
    top.mkdir()
    here = os.open(top, os.O_RDONLY)
    for _ in range(400):
        for name in ("side", "n" * 100):
            os.mkdir(name, dir_fd=here)
        os.close(os.open("file", os.O_CREAT, dir_fd=here))
        below = os.open("n" * 100, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    assert agent.wire.path(REMOVE, str(top)).errno == 0
    assert not top.exists()


def test_list(agent: Agent) -> None:
    root = agent.home / "l"
    for path in ("b/x/deep", "b/a", "B", "a.txt.d"):
        (root / path).mkdir(parents=True)
    (root / "a.txt").touch()
    (root / "to-b").symlink_to("b")
    names = [str(Path(item.path).relative_to(root)) for item in listing(agent.wire, root, 1)]
    assert names == ["B", "a.txt", "a.txt.d", "b", "to-b"]
    assert [item.name for item in listing(agent.wire, root, 0)] == [Path(name).name for name in names]
    names = [str(Path(item.path).relative_to(root)) for item in listing(agent.wire, root, 2)]
    assert names == ["B", "a.txt", "a.txt.d", "b", "b/a", "b/x", "to-b"]
    assert len(listing(agent.wire, root, 9)) == 8
    assert agent.wire.path(LIST, str(root / "a.txt")).errno == errno.ENOTDIR
    assert agent.wire.path(LIST, str(root / "missing")).errno == errno.ENOENT


def test_list_many_under_a_small_window(agent: Agent) -> None:
    root = agent.home / "many"
    root.mkdir()
    for index in range(3000):
        (root / f"{index:05}").touch()
    items = listing(agent.wire, root, 1)
    assert [item.name for item in items] == [f"{index:05}" for index in range(3000)]
    stream = agent.wire.open(LIST, field(1, "root"), field(2, str(root)))
    got = 0
    while got < FULL_WINDOW:
        frame = agent.wire.on(stream, DATA, END)
        got += len(frame.payload)
    assert got == FULL_WINDOW
    agent.wire.send(CLOSE, stream)
    assert agent.wire.on(stream, END)


def test_read(agent: Agent) -> None:
    content = os.urandom(1_000_003)
    path = agent.home / "r"
    path.write_bytes(content)
    wire = agent.wire
    assert wire.read(str(path)) == content
    assert wire.read(str(path), field(6, u64(999_990))) == content[999_990:]
    assert wire.read(str(path), field(6, u64(5)), field(7, u64(70_000))) == content[5:70_005]
    assert wire.read(str(path), field(6, u64(2_000_000))) == b""
    assert wire.read(str(path), field(7, u64(0))) == b""
    (agent.home / "empty").touch()
    assert wire.read(str(agent.home / "empty")) == b""
    assert len(wire.read("/proc/self/status")) > 100
    assert len(wire.read("/proc/sys/kernel/random/boot_id")) == 37


def test_through_a_symlink(agent: Agent) -> None:
    (agent.home / "target").write_bytes(b"twelve bytes")
    (agent.home / "link").symlink_to("target")
    stream = agent.wire.open(READ, field(1, "root"), field(2, str(agent.home / "link")))
    found = entry_of(agent.wire.on(stream, REPLY))
    assert (found.name, found.size, found.target) == ("link", 12, str(agent.home / "target"))
    assert agent.wire.output(stream)[0] == {0: b"twelve bytes"}
    assert entry_of(agent.wire.write(str(agent.home / "link"), b"three")).size == 5
    assert (agent.home / "target").read_bytes() == b"three"


def test_read_refusals(agent: Agent) -> None:
    os.mkfifo(agent.home / "fifo")
    wire = agent.wire
    assert wire.path(READ, str(agent.home)).errno == errno.EISDIR
    assert wire.path(READ, str(agent.home / "fifo")).errno == errno.EINVAL
    assert wire.path(READ, "/dev/zero").errno == errno.EINVAL
    assert wire.path(READ, "missing").errno == errno.ENOENT


def test_read_waits_for_the_window_and_can_be_closed(agent: Agent) -> None:
    path = agent.home / "big"
    path.write_bytes(bytes(2_000_000))
    wire = agent.wire
    stream = wire.open(READ, field(1, "root"), field(2, str(path)))
    got = 0
    while got < FULL_WINDOW:
        got += len(wire.on(stream, DATA).payload)
    assert got == FULL_WINDOW
    assert wire.path(STAT, str(path)).errno == 0
    wire.send(WINDOW, stream, u32(10))
    assert len(wire.on(stream, DATA).payload) == 10
    wire.send(CLOSE, stream)
    assert wire.on(stream, END).errno == 0


def test_write(agent: Agent) -> None:
    wire = agent.wire
    content = os.urandom(1_500_000)
    done = entry_of(wire.write("new/dir/file", content, user="user"))
    path = agent.home / "home/user/new/dir/file"
    assert (done.path, done.size, done.mode, done.owner, done.group) == (
        str(path),
        1_500_000,
        0o644,
        "user",
        "user",
    )
    assert path.read_bytes() == content
    assert (agent.home / "home/user/new").stat().st_uid == 1000
    inode = path.stat().st_ino
    assert entry_of(wire.write(str(path), b"short")).owner == "root"
    assert (path.read_bytes(), path.stat().st_ino) == (b"short", inode)
    assert entry_of(wire.write(str(path), b"er", field(7, u8(1)))).size == 7
    assert entry_of(wire.write("mode", b"", field(6, u32(0o4777)))).mode == 0o4777
    assert entry_of(wire.write("empty", b"")).size == 0


def test_write_refusals(agent: Agent) -> None:
    os.mkfifo(agent.home / "fifo")
    wire = agent.wire
    assert wire.write(str(agent.home), b"x").errno == errno.EISDIR
    assert wire.write(str(agent.home / "fifo"), b"x").errno == errno.EINVAL
    assert wire.write("/dev/null", b"x").errno == errno.EINVAL
    assert wire.write("m", b"x", field(6, u32(0o10000))).errno == errno.EINVAL
    stream = wire.open(WRITE, field(1, "root"), field(2, "half"))
    assert wire.on(stream, REPLY).errno == 0
    wire.send(DATA, stream, b"half")
    wire.send(CLOSE, stream)
    assert wire.on(stream, END).errno == 0
    assert (agent.home / "root/half").read_bytes() == b"half"


def test_write_to_a_full_disk(agent: Agent) -> None:
    assert agent.wire.write("/dev/full/x", b"").errno == errno.ENOTDIR
    mounted = agent.home / "small"
    mounted.mkdir()
    if os.system(f"mount -t tmpfs -o size=1m tmpfs {mounted} 2>/dev/null"):
        pytest.skip("cannot mount a tmpfs here")
    try:
        assert agent.wire.write(str(mounted / "f"), bytes(3_000_000)).errno == errno.ENOSPC
        assert agent.wire.run("/bin/true")[1] == 0
    finally:
        os.system(f"umount {mounted}")


def test_metadata(agent: Agent) -> None:
    probe = agent.home / "probe"
    probe.touch()
    if not xattrs_work(probe):
        pytest.skip("this file system has no user attributes")
    wire = agent.wire
    kept = {"user.e2b.a": b"1", "user.e2b.b": b"two words"}
    done = entry_of(
        wire.write("f", b"x", *(field(8, name.encode() + b"\0" + value) for name, value in kept.items()))
    )
    assert done.metadata == kept
    path = agent.home / "root/f"
    os.setxattr(path, "user.other", b"stays")
    assert entry_of(wire.path(STAT, "f")).metadata == kept
    assert entry_of(wire.write("f", b"x", field(8, b"user.e2b.c\x003"))).metadata == {"user.e2b.c": b"3"}
    assert entry_of(wire.write("f", b"x")).metadata == {}
    assert os.listxattr(path) == ["user.other"]
    assert entry_of(wire.path(MOVE, "f", field(3, "g"))).metadata == {}
    assert wire.write("f", b"x", field(8, b"user.evil\x003")).errno == errno.EINVAL
    assert wire.write("f", b"x", field(8, b"user.e2b.c")).errno == errno.EINVAL


# ---- watches ----


def watch(wire: Wire, path: Path, *, recursive: bool = False) -> int:
    stream = wire.open(WATCH, field(1, "root"), field(2, str(path)), field(6, u8(recursive)))
    assert wire.on(stream, REPLY).errno == 0
    return stream


def events(wire: Wire, stream: int) -> list[tuple[int, str]]:
    """Everything up to now."""
    assert wire.ask(SYNC_WATCH, field(11, u32(stream))).errno == 0
    mine = [frame for frame in wire.held if frame.stream == stream]
    wire.held = [frame for frame in wire.held if frame.stream != stream]
    assert all(frame.type == EVENT and frame.payload[0] == 2 for frame in mine)
    return [(number(frame.values[24]), frame.values[25].decode()) for frame in mine]


def test_watch_of_a_written_file_is_three_events(agent: Agent) -> None:
    stream = watch(agent.wire, agent.home)
    assert agent.wire.write(str(agent.home / "f"), b"content").errno == 0
    assert events(agent.wire, stream) == [(CREATE, "f"), (CHMOD, "f"), (CHANGED, "f")]
    os.rename(agent.home / "f", agent.home / "g")
    os.unlink(agent.home / "g")
    assert events(agent.wire, stream) == [(RENAMED, "f"), (CREATE, "g"), (REMOVED, "g")]
    (agent.home / "sub").mkdir()
    (agent.home / "sub/file").touch()
    assert events(agent.wire, stream) == [(CREATE, "sub")]
    agent.wire.send(CLOSE, stream)
    assert agent.wire.on(stream, END)
    assert agent.wire.ask(SYNC_WATCH, field(11, u32(stream))).errno == errno.ENOENT


def test_recursive_watch(agent: Agent) -> None:
    wire, top = agent.wire, agent.home / "w"
    (top / "old/older").mkdir(parents=True)
    stream = watch(wire, top, recursive=True)
    (top / "old/older/f").touch()
    assert (CREATE, "old/older/f") in events(wire, stream)
    assert wire.path(MKDIR, str(top / "nested/more")).errno == 0
    assert wire.write(str(top / "nested/more/test.txt"), b"x").errno == 0
    seen = events(wire, stream)
    assert (CREATE, "nested") in seen
    assert (CREATE, "nested/more/test.txt") in seen
    assert (CHANGED, "nested/more/test.txt") in seen
    assert len([event for event in seen if event[0] == CREATE]) == 3, "nothing is told twice"
    os.rename(top / "nested", top / "moved")
    (top / "moved/more/again").touch()
    seen = events(wire, stream)
    assert (RENAMED, "nested") in seen
    assert (CREATE, "moved/more/again") in seen
    os.rename(top / "moved", agent.home / "outside")
    assert events(wire, stream) == [(RENAMED, "moved")]
    (agent.home / "outside/more/unseen").touch()
    assert events(wire, stream) == []


def test_files_made_before_the_new_directory_is_watched_are_told(agent: Agent) -> None:
    wire, top = agent.wire, agent.home / "w"
    top.mkdir()
    stream = watch(wire, top, recursive=True)
    _, status = wire.run(
        "/bin/sh", "-c", f"cd {top}; mkdir -p a/b/c; for i in 1 2 3 4 5 6 7 8 9; do echo > a/b/c/$i; done"
    )
    assert status == 0
    created = [name for event, name in events(wire, stream) if event == CREATE]
    assert sorted(created) == sorted(["a", "a/b", "a/b/c", *(f"a/b/c/{i}" for i in range(1, 10))])


def test_watch_the_end_of_the_directory_itself(agent: Agent) -> None:
    (agent.home / "w").mkdir()
    stream = watch(agent.wire, agent.home / "w", recursive=True)
    (agent.home / "w").rmdir()
    assert events(agent.wire, stream)[-1] == (REMOVED, ".")


def test_watch_refusals(agent: Agent) -> None:
    (agent.home / "file").touch()
    assert agent.wire.path(WATCH, str(agent.home / "file")).errno == errno.ENOTDIR
    assert agent.wire.path(WATCH, str(agent.home / "missing")).errno == errno.ENOENT


def test_watch_a_flood(agent: Agent) -> None:
    top = agent.home / "w"
    top.mkdir()
    stream = watch(agent.wire, top)
    for index in range(3000):
        (top / str(index)).touch()
    names = {name for event, name in events(agent.wire, stream) if event == CREATE}
    assert names == {str(index) for index in range(3000)}
