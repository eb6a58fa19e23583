"""Try what runs microVMs on this host, which takes seconds, so that the first server does not have to."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from wardian.app.drivers import drivers_of
from wardian.config import Settings
from wardian.isolation.qemu import QemuDriver


async def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        driver = drivers_of(Settings(data_dir=Path(scratch)))[QemuDriver.name]()
        found = await driver.probe()
        await driver.close()
    sys.stdout.write(f"isolation {found.level}\n" if found.usable else f"none here: {found.reason}\n")


if __name__ == "__main__":
    asyncio.run(main())
