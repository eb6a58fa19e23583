"""A machine's files as a layer: what differs from the root image, no more and no less, and back again."""

from __future__ import annotations

import os
import tarfile
import time
from pathlib import Path

import pytest
from tests.contract.harness import House, Member

from wardian.images.compose import Clean, compose_root
from wardian.images.layers import apply_layer, capture_layer
from wardian.isolation.port import IsolationLevel, RootImage
from wardian.model.errors import LimitExceeded, WardianError
from wardian.model.resources import Resources

ROOMY = Resources(cpu_count=1, memory_mib=512, disk_mib=1024, processes_max=64)
LARGE = 1 << 30
LONG_NAMES = (
    "mkdir /root/long; cd /root/long; i=0; while [ $i -lt 60 ]; do i=$((i+1)); "
    f"echo $i > ${{i}}{'n' * 120}{'m' * 120}; done; echo x > {'u' * 255}"
)
CHANGES = r"""
set -e
echo secret > /root/a; chmod 4750 /root/a; chown 1000:1000 /root/a; chmod 4750 /root/a
rm /etc/motd
echo more >> /etc/group
mkdir -p /home/user/deep/er "/home/user/odd
name"
echo hi > "/home/user/odd
name/with space"
echo linked > /home/user/one
/bin/inside link /home/user/one /home/user/two 2>/dev/null || true
rm -r /bin/uname
dd if=/dev/zero of=/root/sparse bs=1 count=1 seek=50000000 2>/dev/null
echo kept > /tmp/kept
echo gone > /run/gone
touch -d 2020-02-02T02:02:02 /home/user/deep
"""
STATE = r"""
cd /; ls -lanR --time-style=full-iso /home /root /etc /tmp /bin | grep -v '^total'
for f in /root/a /etc/group /home/user/one /tmp/kept; do echo $f; cat $f; done
"""


async def told(member: Member) -> str:
    return await member.sh(STATE)


def names(layer: Path) -> list[str]:
    with tarfile.open(layer) as archive:
        return archive.getnames()


async def test_what_was_changed_comes_back_in_another_machine(house: House, tmp_path: Path) -> None:
    first = await house.start(ROOMY)
    await first.sh(CHANGES)
    info = await capture_layer(first.guest, house.root, tmp_path / "layer", size_max=LARGE)
    assert info.size_bytes == (tmp_path / "layer").stat().st_size
    listed = names(tmp_path / "layer")
    assert {"etc/.wh.motd", "bin/.wh.uname", "root/a", "tmp/kept"} <= set(listed)
    assert not {name for name in listed if name.split("/")[0] in ("run", "proc", "sys", "dev")}
    assert not {"bin/cat", "etc/passwd"} & set(listed)
    second = await house.start(ROOMY)
    await apply_layer(second.guest, tmp_path / "layer")
    assert await told(second) == await told(first)
    again = await capture_layer(second.guest, house.root, tmp_path / "again", size_max=LARGE)
    assert again == info


async def test_an_untouched_machine_has_nothing_to_tell(house: House, tmp_path: Path) -> None:
    member = await house.boot()
    info = await capture_layer(member.guest, house.root, tmp_path / "layer", size_max=LARGE)
    assert [name for name in names(tmp_path / "layer") if name != "."] == []
    assert info.entries <= 1


async def test_many_files_and_much_content_are_quick(house: House, tmp_path: Path) -> None:
    if house.driver.level is IsolationLevel.MICROVM_EMULATED:
        pytest.skip("nothing is quick in an emulator")
    member = await house.start(ROOMY)
    await member.sh(
        "dd if=/dev/urandom of=/root/r bs=1M count=8 2>/dev/null; cd /root; for i in 1 2 3 4 5 6 7 8 9; "
        "do cat r r r > c$i; done"
    )
    start = time.monotonic()
    info = await capture_layer(member.guest, house.root, tmp_path / "layer", size_max=LARGE)
    assert info.size_bytes / (time.monotonic() - start) > 5e6
    other = await house.start(ROOMY)
    await apply_layer(other.guest, tmp_path / "layer")
    assert await other.sh("wc -c < /root/c9") == f"{24 << 20}\n"


async def test_a_huge_sparse_file_is_refused_at_once_and_leaves_nothing(house: House, tmp_path: Path) -> None:
    member = await house.start()
    await member.sh("dd if=/dev/zero of=/root/huge bs=1 count=1 seek=900G 2>/dev/null")
    with pytest.raises(LimitExceeded, match="larger than"):
        await capture_layer(member.guest, house.root, tmp_path / "layer", size_max=LARGE)
    assert os.listdir(tmp_path) == []
    assert await member.sh("echo alive") == "alive\n"


async def test_files_may_change_while_they_are_told(house: House, tmp_path: Path) -> None:
    member = await house.start(ROOMY)
    await member.start(
        "/bin/sh",
        "-c",
        "cd /root; while :; do echo x >> grow; : > shrink; mkdir d; echo y > d/f; rm -r d; done",
    )
    for number in range(5):
        try:
            await capture_layer(member.guest, house.root, tmp_path / str(number), size_max=LARGE)
        except WardianError as error:
            raise AssertionError(str(error)) from error
        names(tmp_path / str(number))


async def test_held_processes_stand_still_and_go_on(house: House, tmp_path: Path) -> None:
    member = await house.start(ROOMY)
    script = "cd /root; i=0; while :; do i=$((i+1)); echo $i > a; echo $i > b; done"
    await member.start("/bin/sh", "-c", script)
    await member.sh("while ! test -s /root/b; do :; done")
    await capture_layer(member.guest, house.root, tmp_path / "layer", size_max=LARGE, hold=True)
    with tarfile.open(tmp_path / "layer") as archive:
        found = [archive.extractfile(f"root/{name}") for name in "ab"]
        a, b = (int(file.read() or b"0") if file else 0 for file in found)
    assert b in (a, a - 1, 0) or a == 0
    before = await member.sh("cat /root/a")
    while await member.sh("cat /root/a") == before:
        pass


async def test_names_of_any_length_boot_or_are_refused(house: House, tmp_path: Path) -> None:
    """Many very long names in one directory take blocks that gVisor reads and Linux does not."""
    first = await house.start(ROOMY)
    await first.sh(LONG_NAMES)
    await capture_layer(first.guest, house.root, tmp_path / "layer", size_max=LARGE)
    composed = compose_root(house.root.path, [tmp_path / "layer"], tmp_path / "image", clean=Clean())
    house.root = RootImage(tmp_path / "image", composed.digest)
    if house.driver.name == "qemu":
        with pytest.raises(WardianError, match="names of over 200 bytes") as refused:
            await house.boot(ROOMY)
        assert refused.value.code == "root_unusable"
    else:
        second = await house.start(ROOMY)
        assert await second.sh("cat /root/long/*") == await first.sh("cat /root/long/*")
        assert (await second.sh("wc -l < /root/long/7" + "n" * 120 + "m" * 120)) == "1\n"


async def test_a_composed_image_boots_with_its_files(house: House, tmp_path: Path) -> None:
    """Captured, composed and booted: the files are those of the first machine."""
    first = await house.start(ROOMY)
    await first.sh(CHANGES)
    await capture_layer(first.guest, house.root, tmp_path / "layer", size_max=LARGE)
    composed = compose_root(house.root.path, [tmp_path / "layer"], tmp_path / "image", clean=Clean())
    house.root = RootImage(tmp_path / "image", composed.digest)
    second = await house.boot(ROOMY)  # a clone would be given names of its own, which are files
    assert "ls:" not in await second.sh("ls -R / > /dev/null; ls -R /root 2>&1")
    for script in (
        "ls -R /home /root /etc /tmp /bin",
        "cat /root/a /home/user/one /etc/group",
        "ls -ln /root/a /home/user | while read mode links rest; do echo $mode; done",
        "wc -c < /root/sparse",
    ):
        assert await second.sh(script) == await first.sh(script)
    info = await capture_layer(second.guest, house.root, tmp_path / "again", size_max=LARGE)
    assert info.entries <= 1
