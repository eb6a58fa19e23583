"""Machines with a Linux kernel of their own, run by QEMU: under hardware virtualisation, or emulated."""

from wardian.isolation.qemu.driver import QemuDriver
from wardian.isolation.qemu.tools import Tools

__all__ = ["QemuDriver", "Tools"]
