"""``wardian`` with a second real driver beside gVisor: what a host with two kinds of isolation has.

The second is gVisor as well, under another name, and says that it is a microVM under KVM, which is not true
and not said outside of tests.
"""

from __future__ import annotations

from collections.abc import Mapping

from tests.contract.harness import gvisor_tools
from tests.lifecycle.renamed import RenamedGvisor

from wardian.app import drivers
from wardian.config import Settings
from wardian.isolation.drivers import Make
from wardian.isolation.port import IsolationLevel

FIRST, SECOND = "gvisor", "second"
_drivers_of = drivers.drivers_of


def two_drivers_of(settings: Settings) -> Mapping[str, Make]:
    def second() -> RenamedGvisor:
        return RenamedGvisor(SECOND, IsolationLevel.MICROVM_KVM, settings.data_dir / SECOND, gvisor_tools())

    return {FIRST: _drivers_of(settings)[FIRST], SECOND: second}


if __name__ == "__main__":
    drivers.drivers_of = two_drivers_of
    drivers.serving = two_drivers_of
    from wardian.cli.main import app

    app()
