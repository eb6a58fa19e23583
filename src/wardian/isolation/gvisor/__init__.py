"""The gVisor driver of the isolation port."""

from wardian.isolation.gvisor.driver import GvisorDriver
from wardian.isolation.gvisor.launch import Tools

__all__ = ["GvisorDriver", "Tools"]
