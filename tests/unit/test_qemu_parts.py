"""Parts of the QEMU driver that need no machine: the kernel, the first file system, the relay, the seal."""

from __future__ import annotations

import gzip
import os
import socket
import stat
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from wardian.isolation.host.substrate import Substrate
from wardian.isolation.port import ImageRefused, MachineImage, MachineSpec, RootImage
from wardian.isolation.qemu import image as images
from wardian.isolation.qemu.command import Accelerator, kernel_line, waiting_command
from wardian.isolation.qemu.initramfs import Entry, cpio
from wardian.isolation.qemu.kernel import KernelUnusable, given_kernel, in_order, uncompressed
from wardian.model.resources import Resources

REPOSITORY = Path(__file__).resolve().parents[2]
ELF = b"\x7fELF" + bytes(1000)
SPEC = MachineSpec(RootImage(Path("root"), "sha256:1"), Resources(1, 128, 64, 64))
HERE = Substrate("QEMU 10.0.2", "sha256:2+microvm.1.tcg", frozenset({"emulated"}))


def bz_image(payload: bytes) -> bytes:
    """A bzImage with this payload behind one sector of set-up code."""
    head = bytearray(1024)
    head[0x1F1] = 1
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", head, 0x248, 0, len(payload))
    return bytes(head) + payload


def test_a_kernel_is_taken_out_of_its_image() -> None:
    assert uncompressed(bz_image(zstandard.compress(ELF))) == ELF
    assert uncompressed(bz_image(gzip.compress(ELF) + bytes(4))) == ELF


@pytest.mark.parametrize(
    "image", [b"", b"MZ" * 600, bz_image(b"what"), bz_image(zstandard.compress(b"no kernel")), bz_image(b"")]
)
def test_what_is_no_kernel_is_refused(image: bytes) -> None:
    with pytest.raises(KernelUnusable):
        uncompressed(image)


def test_a_given_kernel_is_unpacked_and_its_arguments_kept(tmp_path: Path) -> None:
    given = tmp_path / "bzImage"
    given.write_bytes(bz_image(zstandard.compress(ELF)))
    kernel = given_kernel(given, "pci=off nosmp", tmp_path / "cache")
    assert kernel.image.read_bytes() == ELF
    assert kernel.arguments == ("pci=off", "nosmp")
    with pytest.raises(KernelUnusable, match="cannot be read"):
        given_kernel(tmp_path / "missing", "", tmp_path)


def test_modules_come_after_what_they_depend_on() -> None:
    modules = {
        "erofs": b"\0depends=libcrc32c,net-fs\0",
        "libcrc32c": b"\0depends=\0",
        "net_fs": b"\0depends=libcrc32c\0",
    }
    assert in_order(["erofs", "built_in", "libcrc32c"], modules) == ["libcrc32c", "net_fs", "erofs"]


def test_the_first_file_system_is_one_that_cpio_reads(tmp_path: Path) -> None:
    entries = [Entry("a", stat.S_IFDIR | 0o755), Entry("a/file", stat.S_IFREG | 0o644, b"content")]
    archive = cpio(entries)
    assert archive.count(b"070701") == 3
    assert len(archive) % 4 == 0
    at, names = 0, []
    while at < len(archive):
        fields = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        name_end = at + 110 + fields[11]
        names.append(archive[at + 110 : name_end - 1].decode())
        at = name_end + -name_end % 4 + fields[6]
        at += -at % 4
    assert names == ["a", "a/file", "TRAILER!!!"]


def test_the_command_line_gives_an_emulated_kernel_its_counter() -> None:
    line = kernel_line(SPEC, Accelerator.TCG, 2_793_436, ("debug",), echo=False)
    assert "tsc_early_khz=2793436" in line
    assert line.endswith(" debug")
    assert "wardian_processes=64" in line
    assert "tsc" not in kernel_line(SPEC, Accelerator.KVM, 0, (), echo=False)
    assert "init_on_free=1" in line  # what is free is zeros, which no image stores
    large = replace(SPEC, resources=replace(SPEC.resources, memory_mib=2048))
    assert "init_on_free=1" not in kernel_line(large, Accelerator.KVM, 0, (), echo=False)
    command = waiting_command(SPEC, Accelerator.TCG)
    assert "spawn=deny" in command[command.index("-sandbox") + 1]
    assert not any("netdev" in word or "virtio-net" in word for word in command)


# --- the seal


def sealed(directory: Path) -> MachineImage:
    directory.mkdir()
    (directory / images.DEVICES).write_bytes(b"devices")
    (directory / images.DISK_FILE).write_bytes(b"disk")
    with (directory / images.MEMORY).open("wb") as memory:
        memory.truncate(128 << 20)
    images.seal(directory)
    return images.KIND.describe(directory, SPEC, HERE)


def test_devices_that_were_not_sealed_are_refused(tmp_path: Path) -> None:
    image = sealed(tmp_path / "image")
    images.check_image(image, SPEC, HERE)
    (image.directory / images.DEVICES).write_bytes(b"DEVICES")
    with pytest.raises(ImageRefused, match="damaged"):
        images.check_image(image, SPEC, HERE)


@pytest.mark.parametrize("words", [b"", b"[]", b"{}", b"null", b"{" * 5000, b'{"devices": 1}'])
def test_a_seal_that_says_nothing_is_refused(tmp_path: Path, words: bytes) -> None:
    image = sealed(tmp_path / "image")
    (image.directory / images.SEAL).write_bytes(words)
    changed = MachineImage(**{**{n: getattr(image, n) for n in image.__slots__}, "files": dict(image.files)})
    changed.files[images.SEAL] = len(words)  # type: ignore[index]
    with pytest.raises(ImageRefused):
        images.check_image(changed, SPEC, HERE)


# --- the relay


@pytest.fixture(scope="module")
def relay_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("relay") / "relay"
    sources = [str(Path(__file__).with_name("relay.c")), str(REPOSITORY / "guest/src/relay.c")]
    flags = ["-std=gnu11", "-D_GNU_SOURCE", "-O1", "-g", "-fsanitize=address,undefined"]
    subprocess.run(["gcc", *flags, "-o", str(program), *sources], check=True)
    return program


@contextmanager
def relaying(
    program: Path, *words: str
) -> Iterator[tuple[socket.socket, socket.socket, subprocess.Popen[bytes]]]:
    """A relay, our end of its packets, our end of its stream."""
    packets, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    stream, other = socket.socketpair()
    for end in (theirs, other):
        end.setblocking(False)
    for end in (packets, stream):
        end.settimeout(20)

    def place() -> None:
        first, second = os.dup(theirs.fileno()), os.dup(other.fileno())
        os.dup2(first, 3)
        os.dup2(second, 4)

    with subprocess.Popen(
        [str(program), *words], stdout=subprocess.PIPE, close_fds=False, preexec_fn=place
    ) as process:
        theirs.close()
        other.close()
        with packets, stream:
            try:
                yield packets, stream, process
            finally:
                stream.close()
                packets.close()
                process.wait(20)


def framed(*packets: bytes) -> bytes:
    return b"".join(b"\xa5" + len(packet).to_bytes(3, "little") + packet for packet in packets)


def test_packets_cross_whole_in_both_directions(relay_program: Path) -> None:
    with relaying(relay_program) as (packets, stream, _):
        sent = [b"x", os.urandom(65544), b"end"]
        for packet in sent:
            packets.send(packet)
        wanted = framed(*sent)
        got = b""
        while len(got) < len(wanted):
            got += stream.recv(1 << 16)
        assert got == wanted
        stream.sendall(bytes(64) + framed(*sent) + bytes(3) + framed(b"after zeros"))
        assert [packets.recv(1 << 17) for _ in range(4)] == [*sent, b"after zeros"]


def test_bytes_may_come_one_by_one(relay_program: Path) -> None:
    with relaying(relay_program) as (packets, stream, _):
        for byte in framed(b"hello", b"there"):
            stream.sendall(bytes([byte]))
        assert [packets.recv(100), packets.recv(100)] == [b"hello", b"there"]


@pytest.mark.parametrize(
    "junk", [b"x", b"\xa5\0\0\0", b"\xa5\xff\xff\xff", b"\xa5\x09\0\x01", b"\x5a" + bytes(8)]
)
def test_what_is_no_packet_ends_the_relay(relay_program: Path, junk: bytes) -> None:
    with relaying(relay_program) as (packets, stream, process):
        stream.sendall(framed(b"good") + junk)
        assert packets.recv(100) == b"good"
        assert process.wait(20) == 0


def test_a_relay_begins_with_zeros_and_may_tell_the_time(relay_program: Path) -> None:
    with relaying(relay_program, "pad", "tell") as (_, stream, _):
        told = b""
        while len(told) < 64 + 9:
            told += stream.recv(100)
        assert told[:65] == bytes(64) + b"\x5a"
    with relaying(relay_program, "clock") as (_, stream, process):
        stream.sendall(told)
        assert process.stdout is not None
        assert abs(int(process.stdout.readline()) / 1e9 - time.time()) < 60


@settings(max_examples=10, deadline=None)
@given(st.binary(max_size=300))
def test_no_bytes_at_all_break_more_than_the_relay(relay_program: Path, data: bytes) -> None:
    with relaying(relay_program) as (_, stream, process):
        stream.sendall(data)
        stream.shutdown(socket.SHUT_WR)
        assert process.wait(20) == 0
