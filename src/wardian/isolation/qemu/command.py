"""QEMU's command line, and the guest kernel's. Both sides of a snapshot must have the same devices:
``LAYOUT`` names them, and is part of what an image is bound to."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum

from wardian.isolation.port import MachineSpec

LAYOUT = "microvm.1"
FD_CONTROL, FD_STREAM, FD_ROOT, FD_DISK, FD_KERNEL, FD_INITRD, FD_KVM = range(3, 10)
_SET_ROOT, _SET_DISK, _SET_KVM = 1, 2, 3

MACHINE = (
    "microvm", "acpi=on", "isa-serial=off", "pit=off", "pic=off", "rtc=on", "x-option-roms=off",
    "suppress-vmdesc=on", "dump-guest-core=off", "mem-merge=off",
)  # fmt: skip
TRANSLATED_MIB = 64
"""How much translated code an emulated machine may hold."""

_KERNEL = (
    "quiet", "reboot=t", "panic=-1", "mitigations=off", "no_timer_check", "cryptomgr.notests", "lsm=",
    "audit=0", "initcall_blacklist=jent_mod_init,crypto_kdf108_init", "random.trust_cpu=on",
)  # fmt: skip

CLEARED_MIB_MAX = 1024
"""Up to this size a guest clears memory when it is freed, not when it is taken. It costs the same, and what
is free is zeros, which no image stores. But it begins by clearing all it has: a larger one would pay for that
with seconds of its boot."""
_CLEARING = ("init_on_alloc=0", "init_on_free=1")


class Accelerator(StrEnum):
    """What runs the guest's instructions."""

    KVM = "kvm"
    TCG = "tcg"


def boot_command(spec: MachineSpec, accelerator: Accelerator, kernel_line: str) -> list[str]:
    """A machine that boots at once."""
    memory = f"memory-backend-ram,id=ram,size={spec.resources.memory_mib}M"
    return [
        *_common(spec, accelerator, machine=(*MACHINE, "memory-backend=ram")),
        *("-object", memory),
        *("-kernel", f"/proc/self/fd/{FD_KERNEL}", "-initrd", f"/proc/self/fd/{FD_INITRD}"),
        *("-append", kernel_line),
    ]


def waiting_command(spec: MachineSpec, accelerator: Accelerator) -> list[str]:
    """A machine that waits, before it has even memory, for the image that it will be a clone of."""
    return [*_common(spec, accelerator, machine=MACHINE), "--preconfig", "-S", "-incoming", "defer"]


def kernel_line(
    spec: MachineSpec, accelerator: Accelerator, tsc_khz: int, arguments: tuple[str, ...], *, echo: bool
) -> str:
    """The guest kernel's command line."""
    words = [*_KERNEL, f"wardian_processes={spec.resources.processes_max}"]
    if spec.resources.memory_mib <= CLEARED_MIB_MAX:
        words += _CLEARING
    if accelerator is Accelerator.TCG:  # there is nothing to measure its counter with
        words += [f"tsc_early_khz={tsc_khz}", "tsc=reliable"]
    return " ".join([*words, *(["wardian_echo"] if echo else []), *arguments])


def _common(spec: MachineSpec, accelerator: Accelerator, machine: tuple[str, ...]) -> Iterator[str]:
    resources = spec.resources
    yield from ("qemu", "-nodefaults", "-no-user-config", "-nographic", "-no-reboot")
    yield from ("-M", ",".join(machine), "-bios", "/firmware")
    yield from ("-m", f"{resources.memory_mib}M", "-smp", str(resources.cpu_count))
    if accelerator is Accelerator.KVM:
        yield from ("-add-fd", f"fd={FD_KVM},set={_SET_KVM}", "-accel", f"kvm,device=/dev/fdset/{_SET_KVM}")
        yield from ("-cpu", "host")
    else:
        yield from ("-accel", f"tcg,thread=multi,tb-size={TRANSLATED_MIB}", "-cpu", "max")
    yield from ("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
    yield from ("-global", "migration.send-configuration=off")
    yield from ("-chardev", f"socket,id=control,fd={FD_CONTROL},server=on,wait=off")
    yield from ("-mon", "chardev=control,mode=control")
    yield from ("-device", "virtio-serial-device,max_ports=2")
    yield from ("-chardev", f"socket,id=link,fd={FD_STREAM}")
    yield from ("-device", "virtserialport,id=link,chardev=link,name=link,nr=1")
    yield from ("-device", "virtio-balloon-device,id=balloon,free-page-reporting=on")
    yield from ("-add-fd", f"fd={FD_ROOT},set={_SET_ROOT}", "-add-fd", f"fd={FD_DISK},set={_SET_DISK}")
    yield from ("-blockdev", _file("root", _SET_ROOT, "read-only=on,auto-read-only=off"))
    yield from ("-blockdev", _file("disk", _SET_DISK, "discard=unmap,file.discard=unmap,cache.no-flush=on"))
    yield from ("-device", "virtio-blk-device,drive=root", "-device", "virtio-blk-device,drive=disk")


def _file(name: str, fdset: int, more: str) -> str:
    file = f"file.driver=file,file.filename=/dev/fdset/{fdset},file.locking=off"
    return f"driver=raw,node-name={name},{file},{more}"


__all__ = ["FD_CONTROL", "FD_DISK", "FD_INITRD", "FD_KERNEL", "FD_KVM", "FD_ROOT", "FD_STREAM", "LAYOUT",
           "Accelerator", "boot_command", "kernel_line", "waiting_command"]  # fmt: skip
