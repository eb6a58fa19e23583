"""Files and watches, through the official SDK and plain HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from e2b import (
    AsyncSandbox,
    AuthenticationException,
    FileNotFoundException,
    FilesystemEventType,
    FileType,
    InvalidArgumentException,
    Sandbox,
    SandboxException,
    TimeoutException,
)

Done = Callable[[Any], Awaitable[Any]]


# -- reading and writing


async def test_what_is_written_is_read(sandbox: Any, done: Done, room: str) -> None:
    path = f"{room}/new/parents/a.txt"
    info = await done(sandbox.files.write(path, "héllo"))
    assert (info.path, info.name, info.type) == (path, "a.txt", FileType.FILE)
    assert await done(sandbox.files.read(path)) == "héllo"
    inode = (await done(sandbox.commands.run(f"stat -c %i {path}"))).stdout
    await done(sandbox.files.write(path, "x"))
    assert await done(sandbox.files.read(path)) == "x"
    assert (await done(sandbox.commands.run(f"stat -c %i {path}"))).stdout == inode, "overwritten in place"


async def test_relative_paths_are_at_home(sandbox: Any, done: Done, room: str) -> None:
    relative = room.removeprefix("/home/user/") + "/a.txt"
    assert (await done(sandbox.files.write(relative, "1"))).path == f"{room}/a.txt"
    assert (await done(sandbox.files.write("~/" + relative, "2"))).path == f"{room}/a.txt"
    name = f"hello-{uuid.uuid4().hex[:8]}.txt"
    assert (await done(sandbox.files.write(name, "3", user="root"))).path == f"/root/{name}"
    with pytest.raises(AuthenticationException, match="unknown user ghost"):
        await done(sandbox.files.write(name, "4", user="ghost"))


async def test_many_files_in_one_form(sandbox: Any, done: Done, room: str) -> None:
    files = [{"path": f"{room}/dir {number}/f{number}", "data": f"text {number}"} for number in range(10)]
    written = await done(sandbox.files.write_files(files))
    assert [info.path for info in written] == [each["path"] for each in files]
    for each in files:
        assert await done(sandbox.files.read(each["path"])) == each["data"]
    assert await done(sandbox.files.write_files([])) == []


async def test_a_user_s_files_may_be_written_anywhere(sandbox: Any, done: Done) -> None:
    """Missing parents are made even where the user may make none, and then belong to the user."""
    top = f"/{uuid.uuid4().hex[:12]}"
    (written,) = await done(sandbox.files.write_files([{"path": f"{top}/deep/f", "data": "x"}]))
    assert (written.name, written.path, written.type) == ("f", f"{top}/deep/f", FileType.FILE)
    for path in (top, f"{top}/deep", f"{top}/deep/f"):
        info = await done(sandbox.files.get_info(path))
        assert (info.owner, info.group) == ("user", "user")


async def test_a_missing_file_is_not_found(sandbox: Any, done: Done, room: str) -> None:
    for form in ("text", "bytes", "stream"):
        with pytest.raises(FileNotFoundException, match=f"path '{room}/none' does not exist"):
            await done(sandbox.files.read(f"{room}/none", format=form))
    with pytest.raises(InvalidArgumentException, match="is a directory"):
        await done(sandbox.files.read(room))
    with pytest.raises(InvalidArgumentException, match="is a directory"):
        await done(sandbox.files.write(room, "x"))


async def test_empty_files(sandbox: Any, done: Done, room: str) -> None:
    path = f"{room}/empty"
    await done(sandbox.files.write(path, ""))
    assert await done(sandbox.files.read(path)) == ""
    assert await done(sandbox.files.read(path, gzip=True)) == ""
    assert bytes(await done(sandbox.files.read(path, format="bytes"))) == b""


def test_an_empty_file_says_that_it_is_empty(envd: httpx.Client, shared: Sandbox, room: str) -> None:
    """Reading an empty file gives "" in every form: its answer has ``Content-Length: 0``."""
    shared.files.write(f"{room}/empty", "")
    assert b"".join(shared.files.read(f"{room}/empty", format="stream")) == b""
    for coding in ("identity", "gzip", "gzip, deflate"):
        answer = envd.get("/files", params={"path": f"{room}/empty"}, headers={"Accept-Encoding": coding})
        assert (answer.status_code, answer.content, answer.headers["content-length"]) == (200, b"", "0")


@pytest.mark.parametrize("write_gzip", [False, True])
@pytest.mark.parametrize("read_gzip", [False, True])
@pytest.mark.parametrize("octets", [None, True])
async def test_gzip_in_any_combination(
    sandbox: Any, done: Done, room: str, *, write_gzip: bool, read_gzip: bool, octets: bool | None
) -> None:
    data = b"0123456789abcdef" * 20_000
    await done(sandbox.files.write(f"{room}/z", data, gzip=write_gzip, use_octet_stream=octets))
    assert bytes(await done(sandbox.files.read(f"{room}/z", format="bytes", gzip=read_gzip))) == data


async def test_streams_both_ways(sandbox: Any, done: Done, room: str) -> None:
    pieces = [bytes([number]) * 100_000 for number in range(20)]

    def plainly() -> Iterator[bytes]:
        yield from pieces

    async def asynchronously() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    source = plainly() if isinstance(sandbox, Sandbox) else asynchronously()
    await done(sandbox.files.write(f"{room}/s", source))
    reader = await done(sandbox.files.read(f"{room}/s", format="stream"))
    got = b"".join(reader) if isinstance(sandbox, Sandbox) else b"".join([piece async for piece in reader])
    assert got == b"".join(pieces)


async def test_files_of_the_kernel_have_content_though_no_size(sandbox: Any, done: Done) -> None:
    boot_id = await done(sandbox.files.read("/proc/sys/kernel/random/boot_id"))
    assert uuid.UUID(boot_id.strip())


def test_large_files_come_back_as_they_went(shared: Sandbox, room: str) -> None:
    block = bytes(range(256)) * 4096
    digest = hashlib.sha256(block * 32).hexdigest()
    shared.files.write(f"{room}/large", (block for _ in range(32)))
    told = shared.commands.run(f"sha256sum {room}/large").stdout.split()[0]
    assert told == digest
    got = hashlib.sha256()
    for piece in shared.files.read(f"{room}/large", format="stream"):
        got.update(piece)
    assert got.hexdigest() == digest
    shared.files.remove(f"{room}/large")


# -- looking around


async def test_what_is_known_of_a_file(sandbox: Any, done: Done, room: str) -> None:
    await done(sandbox.files.write(f"{room}/a.txt", "test"))
    info = await done(sandbox.files.get_info(f"{room}/a.txt"))
    assert (info.name, info.type, info.path) == ("a.txt", FileType.FILE, f"{room}/a.txt")
    assert (info.size, info.mode, info.permissions) == (4, 0o644, "-rw-r--r--")
    assert (info.owner, info.group, info.symlink_target, info.metadata) == ("user", "user", None, None)
    assert abs(info.modified_time - datetime.now(UTC)) < timedelta(minutes=5)
    info = await done(sandbox.files.get_info(room))
    assert (info.type, info.mode, info.permissions) == (FileType.DIR, 0o755, "drwxr-xr-x")
    assert info.size > 0


async def test_links(sandbox: Any, done: Done, room: str) -> None:
    await done(sandbox.commands.run("echo x > target; ln -s target link", cwd=room))
    info = await done(sandbox.files.get_info(f"{room}/link"))
    assert (info.type, info.symlink_target) == (FileType.FILE, f"{room}/target")


async def test_listings(sandbox: Any, done: Done, room: str) -> None:
    await done(sandbox.commands.run("mkdir -p b/c/d; touch a b/x b/c/y z", cwd=room))

    async def names(**options: Any) -> list[str]:
        entries = await done(sandbox.files.list(room, **options))
        return [entry.path.removeprefix(room + "/") for entry in entries]

    assert await names() == ["a", "b", "z"]
    assert await names(depth=2) == ["a", "b", "b/c", "b/x", "z"]
    assert await names(depth=3) == ["a", "b", "b/c", "b/c/d", "b/c/y", "b/x", "z"]
    with pytest.raises(InvalidArgumentException):
        await names(depth=0)
    with pytest.raises(FileNotFoundException):
        await done(sandbox.files.list(f"{room}/none"))
    with pytest.raises(InvalidArgumentException):
        await done(sandbox.files.list(f"{room}/a"))


def test_a_depth_of_zero_is_one(envd: httpx.Client, shared: Sandbox, room: str) -> None:
    """The server takes a depth of 0 for 1, and does not list the directory itself."""
    shared.commands.run("mkdir d; touch d/below f", cwd=room)
    for body in ({"path": room}, {"path": room, "depth": 0}, {"path": room, "depth": 1}):
        entries = envd.post("/filesystem.Filesystem/ListDir", json=body).json()["entries"]
        assert [entry["path"] for entry in entries] == [f"{room}/d", f"{room}/f"]


async def test_making_moving_removing(sandbox: Any, done: Done, room: str) -> None:
    files = sandbox.files
    assert await done(files.make_dir(f"{room}/d/e")) is True
    assert await done(files.make_dir(f"{room}/d/e")) is False
    await done(files.write(f"{room}/d/e/f", "1", metadata={"k": "v"}))
    info = await done(files.rename(f"{room}/d/e/f", f"{room}/g"))
    assert (info.name, info.path, info.metadata) == ("g", f"{room}/g", {"k": "v"})
    assert await done(files.exists(f"{room}/d/e/f")) is False
    with pytest.raises(FileNotFoundException):
        await done(files.rename(f"{room}/none", f"{room}/x"))
    await done(files.remove(f"{room}/d"))
    await done(files.remove(f"{room}/d"))
    assert await done(files.exists(f"{room}/d")) is False


async def test_metadata(sandbox: Any, done: Done, room: str) -> None:
    path = f"{room}/m"
    written = await done(sandbox.files.write(path, "1", metadata={"Author": "me", "n": "1"}))
    assert written.metadata == {"author": "me", "n": "1"}
    assert (await done(sandbox.files.get_info(path))).metadata == {"author": "me", "n": "1"}
    look = f"import os; print(os.getxattr('{path}', 'user.e2b.author').decode())"
    assert (await done(sandbox.commands.run(f'python3 -c "{look}"'))).stdout == "me\n"
    put = f"import os; os.setxattr('{path}', 'user.e2b.inside', b'yes')"
    await done(sandbox.commands.run(f'python3 -c "{put}"'))
    assert (await done(sandbox.files.get_info(path))).metadata["inside"] == "yes"
    await done(sandbox.files.write(path, "2"))
    assert (await done(sandbox.files.get_info(path))).metadata is None


# -- signed URLs


def test_signed_urls(shared: Sandbox, room: str) -> None:
    shared.files.write(f"{room}/s.txt", "signed")
    assert httpx.get(shared.download_url(f"{room}/s.txt")).text == "signed"
    assert httpx.get(shared.download_url(f"{room}/s.txt", use_signature_expiration=60)).text == "signed"
    late = httpx.get(shared.download_url(f"{room}/s.txt", use_signature_expiration=-60))
    assert (late.status_code, late.json()) == (401, {"code": 401, "message": "signature is already expired"})
    url = shared.download_url(f"{room}/s.txt").replace("s.txt", "other.txt")
    assert httpx.get(url).status_code == 401
    answer = httpx.post(shared.upload_url(f"{room}/up.txt"), files={"file": ("ignored", b"up")})
    assert answer.json() == [{"path": f"{room}/up.txt", "name": "up.txt", "type": "file"}]
    assert httpx.post(shared.upload_url(f"{room}/up.txt"), data={"x": "y"}).status_code == 415
    assert httpx.get(shared.upload_url(f"{room}/up.txt")).status_code == 401


# -- plain HTTP


def test_ranges_and_validators(envd: httpx.Client, shared: Sandbox, room: str) -> None:
    shared.files.write(f"{room}/r.txt", "0123456789")
    query = {"path": f"{room}/r.txt"}
    whole = envd.get("/files", params=query)
    assert (whole.status_code, whole.headers["content-length"]) == (200, "10")
    assert whole.headers["content-disposition"] == 'inline; filename="r.txt"'
    assert whole.headers["content-type"] == "text/plain; charset=utf-8"
    part = envd.get("/files", params=query, headers={"Range": "bytes=2-4"})
    assert (part.status_code, part.text, part.headers["content-range"]) == (206, "234", "bytes 2-4/10")
    assert envd.get("/files", params=query, headers={"Range": "bytes=-3"}).text == "789"
    assert envd.get("/files", params=query, headers={"Range": "bytes=10-"}).status_code == 416
    for known in ("etag", "last-modified"):
        name = {"etag": "If-None-Match", "last-modified": "If-Modified-Since"}[known]
        assert envd.get("/files", params=query, headers={name: whole.headers[known]}).status_code == 304
    stale = envd.get("/files", params=query, headers={"Range": "bytes=0-0", "If-Range": '"other"'})
    assert (stale.status_code, len(stale.content)) == (200, 10)


def test_uploads_that_cannot_work(envd: httpx.Client, room: str) -> None:
    twice = [("file", (f"{room}/a", b"1")), ("file", (f"{room}/a", b"2"))]
    assert envd.post("/files", files=twice).status_code == 400
    assert envd.post("/files", files={"other": (f"{room}/a", b"1")}).status_code == 400
    octets = {"Content-Type": "application/octet-stream"}
    assert envd.post("/files", content=b"x", headers=octets).status_code == 400
    assert envd.post("/files", params={"path": "a\0b"}, content=b"x", headers=octets).status_code == 400
    odd = {**octets, "Content-Encoding": "br"}
    assert envd.post("/files", params={"path": f"{room}/a"}, content=b"x", headers=odd).status_code == 415


def test_joining_files(envd: httpx.Client, shared: Sandbox, room: str) -> None:
    for name in "abc":
        shared.files.write(f"{room}/{name}", name * 1000)
    body = {"source_paths": [f"{room}/{name}" for name in "cab"], "destination": f"{room}/all"}
    assert envd.post("/files/compose", json=body).json()["path"] == f"{room}/all"
    assert shared.files.read(f"{room}/all") == "c" * 1000 + "a" * 1000 + "b" * 1000


def test_what_envd_tells_about_itself(envd: httpx.Client, shared: Sandbox) -> None:
    assert envd.get("/envs").json()["SANDBOX_WIDE"] == "everywhere"
    assert envd.get("/health").status_code == 204
    for path in ("/init", "/freeze", "/upgrade"):
        answer = envd.post(path)
        assert (answer.status_code, answer.json()["path"]) == (404, path)
    assert envd.post("/process.Process/Nothing", json={}).status_code == 404
    denied = envd.get("/envs", headers={"X-Access-Token": "guess"})
    assert (denied.status_code, json.loads(denied.text)["code"]) == (401, 401)


# -- watching


def test_a_watch_tells_changes_at_once(shared: Sandbox, room: str) -> None:
    watch = shared.files.watch_dir(room)
    shared.files.write(f"{room}/a.txt", "1")
    events = watch.get_new_events()
    assert [event.name for event in events] == ["a.txt"] * 3
    assert events[0].type is FilesystemEventType.CREATE
    assert {event.type for event in events} == {
        FilesystemEventType.CREATE,
        FilesystemEventType.CHMOD,
        FilesystemEventType.WRITE,
    }
    shared.files.write(f"{room}/a.txt", "2")
    assert watch.get_new_events()[0].type is FilesystemEventType.WRITE
    shared.files.rename(f"{room}/a.txt", f"{room}/b.txt")
    shared.files.remove(f"{room}/b.txt")
    kinds = [event.type for event in watch.get_new_events()]
    assert FilesystemEventType.RENAME in kinds
    assert kinds[-1] is FilesystemEventType.REMOVE
    watch.stop()
    with pytest.raises(SandboxException):
        watch.get_new_events()


def test_a_recursive_watch_follows_new_directories(shared: Sandbox, room: str) -> None:
    watch = shared.files.watch_dir(room, recursive=True)
    shared.files.write(f"{room}/new/deep/test.txt", "1")
    events = watch.get_new_events()
    assert (
        "new/deep/test.txt",
        FilesystemEventType.WRITE,
    ) in [(event.name, event.type) for event in events]
    watch.stop()


def test_a_watch_tells_entries_when_asked(shared: Sandbox, room: str) -> None:
    watch = shared.files.watch_dir(room, include_entry=True, allow_network_mounts=True)
    shared.files.write(f"{room}/a.txt", "12345")
    entries = [event.entry for event in watch.get_new_events()]
    assert entries[-1] is not None
    assert (entries[-1].path, entries[-1].size) == (f"{room}/a.txt", 5)
    watch.stop()


def test_watches_need_a_directory(shared: Sandbox, room: str) -> None:
    shared.files.write(f"{room}/file", "1")
    with pytest.raises(FileNotFoundException):
        shared.files.watch_dir(f"{room}/none")
    with pytest.raises(InvalidArgumentException):
        shared.files.watch_dir(f"{room}/file")


async def test_a_watch_as_a_stream(shared: Sandbox, room: str) -> None:
    sandbox = await AsyncSandbox.connect(shared.sandbox_id)
    told: asyncio.Queue[Any] = asyncio.Queue()
    watch = await sandbox.files.watch_dir(room, on_event=told.put_nowait, recursive=True, timeout=20)
    await sandbox.files.write(f"{room}/nested/test.txt", "1")
    async with asyncio.timeout(10):
        while (event := await told.get()).name != "nested/test.txt":
            pass
    assert event.type in (FilesystemEventType.CREATE, FilesystemEventType.WRITE)
    await watch.stop()  # type: ignore[no-untyped-call]


async def test_a_watch_ends_when_its_time_is_up(shared: Sandbox, room: str) -> None:
    """The deadline of a watch is the server's to keep: JavaScript asks for one of 60 s by itself."""
    sandbox = await AsyncSandbox.connect(shared.sandbox_id)
    over: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
    await sandbox.files.watch_dir(room, on_event=lambda _: None, on_exit=over.set_result, timeout=0.5)
    async with asyncio.timeout(10):
        assert isinstance(await over, TimeoutException)
