"""The guest's kernel: an uncompressed ``vmlinux``, and the modules that it lacks, in order of loading.

Debian's cloud kernel comes as a package, which is taken apart and never installed. What came out of a package
is kept in ``<cache>/<digest of the package>/``: ``vmlinux``, ``modules/NN-name.ko``, ``release``.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import os
import shutil
import struct
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import zstandard

from wardian.model.errors import Kind, WardianError

MODULES = ("virtio_mmio", "virtio_blk", "virtio_balloon", "erofs", "overlay", "dummy")
"""What a machine cannot do without, where the kernel does not have it built in."""

VSOCK = "vmw_vsock_virtio_transport"
"""What a machine needs besides whose link is a vsock, as Firecracker's is."""

BOOT_MAX = 1 << 28
_ELF, _SETUP = b"\x7fELF", b"HdrS"
_ZSTD, _XZ, _GZIP = b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\0", b"\x1f\x8b"


class KernelUnusable(WardianError):
    """There is no kernel for a machine, or it is not one."""

    kind, code = Kind.UNAVAILABLE, "kernel_unusable"


@dataclass(frozen=True, slots=True)
class GuestKernel:
    """What a machine boots. ``arguments`` are appended to our own on its command line."""

    image: Path
    modules: tuple[Path, ...] = ()
    arguments: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Of everything here, as hexadecimal digits."""
        total = hashlib.sha256(" ".join(self.arguments).encode())
        for path in (self.image, *self.modules):
            total.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
        return total.hexdigest()


def find_kernel(cache: Path) -> GuestKernel:
    """The kernel that was extracted last. Raises :class:`KernelUnusable` if there is none."""
    found = sorted(cache.glob("*/release"), key=lambda path: path.stat().st_mtime_ns)
    if not found:
        raise KernelUnusable(
            f"there is no guest kernel in {cache}", hint="run `make setup`, or name a kernel with --kernel"
        )
    directory = found[-1].parent
    return GuestKernel(directory / "vmlinux", tuple(sorted((directory / "modules").glob("*.ko"))))


def given_kernel(image: Path, arguments: str, cache: Path) -> GuestKernel:
    """A user's kernel, ``vmlinux`` or ``bzImage``, with everything we need built in. Raises
    :class:`KernelUnusable`."""
    try:
        data = image.read_bytes()
    except OSError as error:
        raise KernelUnusable(f"the kernel {image} cannot be read: {error}") from error
    if data.startswith(_ELF):
        return GuestKernel(image, (), tuple(arguments.split()))
    directory = cache / "given"
    path = directory / hashlib.sha256(data).hexdigest()
    if not path.exists():
        directory.mkdir(parents=True, exist_ok=True)
        _write(path, uncompressed(data))
    return GuestKernel(path, (), tuple(arguments.split()))


def extract(package: Path, cache: Path, wanted: Iterable[str] = MODULES) -> GuestKernel:
    """Take a ``linux-image-*.deb`` apart into ``cache``; nothing is done if that was done before."""
    with package.open("rb") as file:
        target = cache / hashlib.file_digest(file, "sha256").hexdigest()
    if not (target / "release").exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as draft:
            _take_apart(package, Path(draft), wanted)
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(draft, target)
    os.utime(target / "release")
    return find_kernel(cache)


def _take_apart(package: Path, to: Path, wanted: Iterable[str]) -> None:
    kernel, release, modules = b"", "", dict[str, bytes]()
    command = ["dpkg-deb", "--fsys-tarfile", str(package)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as opening:
        assert opening.stdout is not None
        with tarfile.open(fileobj=opening.stdout, mode="r|") as archive:
            for member in archive:
                path = PurePosixPath(member.name)
                if not member.isfile():
                    continue
                if path.name.startswith("vmlinuz-"):
                    kernel, release = _content(archive, member), path.name.removeprefix("vmlinuz-")
                elif ".ko" in path.suffixes:
                    modules[_module_name(path.name)] = _content(archive, member)
    if opening.returncode or not kernel:
        raise KernelUnusable(f"{package} is no package of a kernel")
    _write(to / "vmlinux", uncompressed(kernel))
    (to / "modules").mkdir()
    for number, name in enumerate(in_order(wanted, modules)):
        _write(to / "modules" / f"{number:02}-{name}.ko", _module(modules[name]))
    _write(to / "release", release.encode())


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    return file.read() if file else b""


def _module_name(file: str) -> str:
    return file.partition(".ko")[0].replace("-", "_")


def _module(data: bytes) -> bytes:
    return lzma.decompress(data) if data.startswith(_XZ) else data


def in_order(wanted: Iterable[str], modules: Mapping[str, bytes]) -> list[str]:
    """Those of ``wanted`` that are modules, each after what it depends on."""
    order: list[str] = []

    def add(name: str) -> None:
        if name in order or name not in modules:  # built in
            return
        for needed in _depends(_module(modules[name])):
            add(needed)
        order.append(name)

    for name in wanted:
        add(name)
    return order


def _depends(module: bytes) -> list[str]:
    """The ``depends=`` of a module's ``.modinfo``."""
    begin = module.find(b"\0depends=") + len(b"\0depends=")
    if begin < len(b"\0depends="):
        return []
    names = module[begin : module.index(b"\0", begin)].decode()
    return [name.replace("-", "_") for name in names.split(",") if name]


def uncompressed(image: bytes) -> bytes:
    """The ``vmlinux`` inside a ``bzImage``. Raises :class:`KernelUnusable`."""
    try:
        if image[0x202:0x206] != _SETUP:
            raise ValueError("it has no setup header")
        sectors = image[0x1F1] or 4
        offset, size = struct.unpack_from("<II", image, 0x248)
        begin = (sectors + 1) * 512 + offset
        kernel = _decompress(image[begin : begin + size])
        if not kernel.startswith(_ELF):
            raise ValueError("what is inside is no ELF file")
    except (ValueError, IndexError, struct.error, OSError, lzma.LZMAError, zstandard.ZstdError) as error:
        raise KernelUnusable(f"this is no kernel that we can boot: {error}") from error
    return kernel


def _decompress(payload: bytes) -> bytes:
    if payload.startswith(_ZSTD):
        return zstandard.ZstdDecompressor().stream_reader(io.BytesIO(payload)).read(BOOT_MAX)
    if payload.startswith(_XZ):
        return lzma.LZMADecompressor().decompress(payload, BOOT_MAX)
    if payload.startswith(_GZIP):
        with gzip.GzipFile(fileobj=io.BytesIO(payload[:-4])) as file:
            return file.read(BOOT_MAX)
    raise ValueError("it is compressed in a way we do not know (we know zstd, xz and gzip)")


def _write(path: Path, data: bytes) -> None:
    draft = path.with_name(f"{path.name}.{os.getpid()}.draft")
    draft.write_bytes(data)
    draft.rename(path)


__all__ = [
    "MODULES",
    "VSOCK",
    "GuestKernel",
    "KernelUnusable",
    "extract",
    "find_kernel",
    "given_kernel",
    "uncompressed",
]
