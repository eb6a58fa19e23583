"""Machines with a Linux kernel of their own, run by Firecracker under KVM, in its own jailer."""

from wardian.isolation.firecracker.driver import FirecrackerDriver
from wardian.isolation.firecracker.tools import Tools

__all__ = ["FirecrackerDriver", "Tools"]
