"""The door for the files of builds: who may put what there, and what an archive can do to the host."""

from __future__ import annotations

import asyncio
import gzip
import io
import tarfile
from collections.abc import AsyncIterator, Iterator
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wardian.api.e2b.uploads import UPLOAD_PATH, Door, HungUp
from wardian.builds import uploads as module
from wardian.builds.ignore import Ignore
from wardian.builds.packing import Folder, Unpackable
from wardian.builds.trees import BadArchive, archive_tree
from wardian.builds.uploads import TICKET_S, TICKETS_MAX, TooLarge, Uploads
from wardian.model.errors import Invalid, LimitExceeded, NotFound

NAME = "a" * 64


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def kept(tmp_path: Path, clock: Clock) -> Uploads:
    return Uploads(tmp_path / "files", clock=clock)


def member(name: str, kind: bytes = tarfile.REGTYPE, **facts: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for fact, value in facts.items():
        setattr(info, fact, value)
    return info


def packed(*members: tarfile.TarInfo, content: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for each in members:
            each.size = each.size or (len(content) if each.isreg() else 0)
            tar.addfile(each, io.BytesIO(content) if each.isreg() else None)
    return buffer.getvalue()


async def pieces(data: bytes, size: int = 1 << 16) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


async def put(uploads: Uploads, ticket: str, data: bytes, *, length: int | None = None) -> int:
    """The status that the door answers a PUT with."""
    statuses: list[int] = []
    parts = [data[at : at + 4096] for at in range(0, len(data), 4096)] or [b""]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    async def beyond(scope: Any, receive: Any, send: Any) -> None:
        statuses.append(0)

    headers = [] if length is None else [(b"content-length", str(length).encode())]
    scope = {"type": "http", "method": "PUT", "path": UPLOAD_PATH + ticket, "headers": headers}
    await Door(beyond, uploads)(scope, receive, send)
    return statuses[0]


def files_in(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "files").rglob("*") if path.is_file()]


# ── tickets


async def test_a_ticket_opens_the_door_once(kept: Uploads) -> None:
    ticket = kept.ticket("t1", NAME)
    assert await put(kept, ticket, packed(member("f"), content=b"x")) == 200
    assert await put(kept, ticket, packed(member("f"), content=b"y")) == 404
    assert kept.find("t1", NAME) is not None


async def test_a_ticket_is_used_up_by_a_bad_upload_as_well(kept: Uploads, tmp_path: Path) -> None:
    ticket = kept.ticket("t1", NAME)
    assert await put(kept, ticket, b"no tar") == 400
    assert await put(kept, ticket, packed(member("f"), content=b"x")) == 404
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("forged", ["", "x", "A" * 43, "../" * 8, "%00", "é" * 20, "x" * 5000])
async def test_a_forged_ticket_opens_nothing(kept: Uploads, tmp_path: Path, forged: str) -> None:
    real = kept.ticket("t1", NAME)
    assert await put(kept, forged, packed(member("f"), content=b"x")) == 404
    assert await put(kept, real[:-1], packed(member("f"), content=b"x")) == 404
    assert files_in(tmp_path) == []


async def test_a_ticket_is_for_one_template_and_one_name(kept: Uploads) -> None:
    """Whatever is sent with it lands there, and nowhere else."""
    await put(kept, kept.ticket("t1", NAME), packed(member("f"), content=b"x"))
    assert kept.find("t1", "b" * 64) is None
    assert kept.find("t2", NAME) is None


async def test_a_ticket_does_not_last(kept: Uploads, clock: Clock) -> None:
    ticket = kept.ticket("t1", NAME)
    clock.now += TICKET_S
    assert await put(kept, ticket, packed(member("f"), content=b"x")) == 404


async def test_tickets_do_not_fill_the_memory(kept: Uploads, clock: Clock) -> None:
    for _ in range(TICKETS_MAX):
        kept.ticket("t1", NAME)
    with pytest.raises(LimitExceeded):
        kept.ticket("t1", NAME)
    clock.now += TICKET_S
    kept.ticket("t1", NAME)


# ── sizes


async def test_an_upload_that_says_it_is_too_large_is_not_read(kept: Uploads, tmp_path: Path) -> None:
    too_much = module.UPLOAD_BYTES_MAX + 1
    assert await put(kept, kept.ticket("t1", NAME), b"x", length=too_much) == 413
    assert await put(kept, kept.ticket("t1", NAME), b"x", length=-1) == 400
    assert files_in(tmp_path) == []


async def test_an_upload_that_does_not_say_so_is_cut_off(
    kept: Uploads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "UPLOAD_BYTES_MAX", 100_000)
    assert await put(kept, kept.ticket("t1", NAME), bytes(200_000)) == 413
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("levels", [1, 2])
async def test_a_gzip_bomb_does_not_go_off(
    kept: Uploads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, levels: int
) -> None:
    """Nor one of several members: unpacking stops at the bound."""
    monkeypatch.setattr(module, "BYTES_MAX", 1 << 20)
    bomb = gzip.compress(packed(member("zeros"), content=bytes(8 << 20))) * levels
    with pytest.raises(TooLarge):
        await kept.receive(kept.take(kept.ticket("t1", NAME)), pieces(bomb))
    assert files_in(tmp_path) == []


@pytest.mark.parametrize(
    "data",
    [
        packed(member("a"), content=b"x" * 600)[:800],
        gzip.compress(packed(member("a"), content=b"x"))[:-20],
        member("a", size=1 << 40).tobuf(tarfile.GNU_FORMAT),
        member("a", size=1 << 62).tobuf(tarfile.GNU_FORMAT) + bytes(1024),
        member("././@LongLink", tarfile.GNUTYPE_LONGNAME, size=1 << 30).tobuf() + bytes(1024),
        member("x", tarfile.XHDTYPE, size=1 << 30).tobuf() + bytes(1024),
        b"",
        b"\x1f\x8b",
        b"\x1f\x8b\x08\x00" + bytes(100),
    ],
    ids=["cut", "cut gzip", "1 TiB", "4 EiB", "long link", "header", "nothing", "magic", "zeros"],
)
async def test_an_archive_that_lies_about_itself_is_refused(
    kept: Uploads, tmp_path: Path, data: bytes
) -> None:
    with pytest.raises((Invalid, NotFound)):
        await kept.receive(kept.take(kept.ticket("t1", NAME)), pieces(data))
    assert files_in(tmp_path) == []


async def test_a_client_that_hangs_up_leaves_nothing(kept: Uploads, tmp_path: Path) -> None:
    async def breaks_off() -> AsyncIterator[bytes]:
        yield packed(member("a"), content=b"x")[:512]
        raise HungUp

    with pytest.raises(HungUp):
        await kept.receive(kept.take(kept.ticket("t1", NAME)), breaks_off())
    assert files_in(tmp_path) == []


# ── members


@pytest.mark.parametrize(
    "members",
    [
        [member("../escape")],
        [member("/etc/cron.d/x")],
        [member("a/../../escape")],
        [member("a" * 5000)],
        [member("link", tarfile.SYMTYPE, linkname="/etc"), member("link/passwd")],
        [member("link", tarfile.SYMTYPE, linkname=".."), member("link/x", tarfile.DIRTYPE)],
        [member("hard", tarfile.LNKTYPE, linkname="/etc/shadow")],
        [member("hard", tarfile.LNKTYPE, linkname="../x")],
        [member("hard", tarfile.LNKTYPE, linkname="absent")],
        [
            member("soft", tarfile.SYMTYPE, linkname="/etc/shadow"),
            member("h", tarfile.LNKTYPE, linkname="soft"),
        ],
        [member("device", tarfile.CHRTYPE, devmajor=1, devminor=3)],
        [member("device", tarfile.BLKTYPE)],
        [member("pipe", tarfile.FIFOTYPE)],
        [member("file"), member("file/below")],
        [member("theirs", uid=-5)],
        [member("theirs", gid=1 << 32)],
    ],
)
async def test_a_member_that_should_not_be_is_refused(
    kept: Uploads, tmp_path: Path, members: list[tarfile.TarInfo]
) -> None:
    with pytest.raises(BadArchive):
        await kept.receive(kept.take(kept.ticket("t1", NAME)), pieces(packed(*members, content=b"x")))
    assert files_in(tmp_path) == []


async def test_too_many_members_are_refused(
    kept: Uploads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wardian.builds.trees.ENTRIES_MAX", 10)
    data = packed(*[member(f"f{number}") for number in range(11)])
    with pytest.raises(BadArchive):
        await kept.receive(kept.take(kept.ticket("t1", NAME)), pieces(data))


async def test_a_symlink_is_kept_as_one_and_leads_nowhere_on_the_host(kept: Uploads, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("the host's")
    data = packed(member("link", tarfile.SYMTYPE, linkname=str(secret)))
    await kept.receive(kept.take(kept.ticket("t1", NAME)), pieces(data))
    found = kept.find("t1", NAME)
    assert found is not None
    with archive_tree(found[1], bytes_max=1 << 20) as tree:
        assert tree.items["link"].kind == "symlink"
        with pytest.raises(KeyError):
            tree.open("link")


async def test_only_an_archive_named_after_its_bytes_decides_its_digest(kept: Uploads) -> None:
    """One that only claims to be gets the digest of its files, whatever it is called."""
    data = packed(member("f", uid=7), content=b"x")
    honest, claimed = sha256(data).hexdigest(), "b" * 64
    assert await kept.receive(kept.take(kept.ticket("t1", honest)), pieces(data)) == honest
    assert await kept.receive(kept.take(kept.ticket("t1", claimed)), pieces(data)) not in (honest, claimed)


def damaged(junk: bytes) -> bytes:
    return packed(member("a"), content=junk)[:1000] + junk


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=4096) | st.binary().map(damaged))
def test_any_bytes_are_an_archive_or_a_refusal(data: bytes) -> None:
    with TemporaryDirectory() as directory:
        kept = Uploads(Path(directory))
        try:
            asyncio.run(kept.receive(kept.take(kept.ticket("t1", NAME)), pieces(data)))
        except Invalid:
            assert not [path for path in Path(directory).rglob("*") if path.is_file()]


# ── what the command line packs


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    """A context with links that lead out of it, and what they lead to."""
    outside, context = tmp_path / "outside", tmp_path / "context"
    (outside / "deep").mkdir(parents=True)
    (outside / "deep/secret").write_text("the user's own")
    (outside / "secret.tar").write_bytes(packed(member("x"), content=b"the user's own"))
    (context / "app").mkdir(parents=True)
    (context / "app/link").symlink_to(outside)
    (context / "app/file").symlink_to(outside / "deep/secret")
    (context / "to-tar.tar").symlink_to(outside / "secret.tar")
    (context / "dir").symlink_to("../outside")
    found = Folder(context, Ignore())
    yield found
    found.close()


@pytest.mark.parametrize("source", ["app", ".", "app/*", "app/file", "dir", "*"])
def test_a_link_that_leads_out_of_the_context_is_packed_as_a_link(folder: Folder, source: str) -> None:
    folder.pack([source])
    (archive,) = folder.archives.values()
    assert b"the user's own" not in archive.read_bytes()


@pytest.mark.parametrize(
    "source", ["dir/deep/secret", "app/link/deep", "app/link/deep/secret", "../outside", "/../outside/deep"]
)
def test_nothing_is_packed_through_a_link(folder: Folder, source: str) -> None:
    with pytest.raises(Unpackable):
        folder.pack([source])


def test_no_archive_is_unpacked_through_a_link(folder: Folder) -> None:
    assert not folder.is_archive("to-tar.tar"), "so it is added as the link it is"
    with pytest.raises(Unpackable):
        folder.unpack("dir/secret.tar")
    assert folder.archives == {}
