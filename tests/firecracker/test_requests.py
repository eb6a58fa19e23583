"""Every request that we make of Firecracker is as it describes them, and is made when it may be."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.firecracker.description import AFTER, BEFORE, BODIES, WHEN, endpoint, faults

from wardian.isolation.firecracker import requests
from wardian.isolation.firecracker.jail import Jail, Names, cgroup_settings, command
from wardian.isolation.firecracker.metrics import Counters, read_counters
from wardian.isolation.firecracker.requests import Rate, Request
from wardian.isolation.firecracker.tools import FirecrackerUnusable, Tools, checked_versions
from wardian.isolation.port import MachineSpec, RootImage
from wardian.model.resources import Resources

RESOURCES = Resources(cpu_count=3, memory_mib=512, disk_mib=1024, processes_max=256)
SPEC = MachineSpec(RootImage(Path("/images/root.erofs"), "sha256:" + "0" * 64), RESOURCES)
TOOLS = Tools(Path("/opt/firecracker"), Path("/opt/jailer"), Path("/k/vmlinux"), Path("/k/initrd"))
RATE = Rate(bytes_per_s=1 << 20, operations_per_s=100)

ALL: list[Request] = [
    *requests.boot(SPEC, RATE, arguments="a=b", echo=True),
    *requests.boot(SPEC, None),
    *requests.restore(),
    requests.capture(),
    requests.pause(),
    requests.resume(),
    requests.describe(),
    requests.flush_metrics(),
    requests.inflate(64),
    requests.limit(requests.DISK_DRIVE, RATE),
]


def body(path: str, *, rate: Rate | None = RATE) -> dict[str, object]:
    (found,) = [each.body for each in requests.boot(SPEC, rate, arguments="a=b") if each.path == path]
    assert found is not None
    return dict(found)


@pytest.mark.parametrize("request_", ALL, ids=lambda request: f"{request.method} {request.path}")
def test_a_request_is_as_described(request_: Request) -> None:
    name = endpoint(request_.method, request_.path)
    assert name in WHEN
    if name in BODIES:
        assert faults(BODIES[name], request_.body) == []
    else:
        assert request_.body is None


def test_the_description_finds_what_is_wrong() -> None:
    schema = BODIES["PUT /machine-config"]
    assert faults(schema, {"vcpu_count": 1}) == ["body lacks mem_size_mib"]
    assert faults(schema, {"vcpu_count": 33, "mem_size_mib": 1}) == ["body.vcpu_count is 33, out of range"]
    assert faults(schema, {"vcpu_count": True, "mem_size_mib": 1}) == ["body.vcpu_count is no integer"]
    assert faults(schema, {"vcpu_count": 1, "mem_size_mib": 1, "x": 1}) == ["body.x is not described"]
    assert faults(BODIES["PATCH /vm"], {"state": "Frozen"}) == ["body.state is 'Frozen'"]


def test_a_boot_configures_everything_before_it_starts() -> None:
    sent = [endpoint(each.method, each.path) for each in requests.boot(SPEC, RATE)]
    assert sent[-1] == "PUT /actions"
    assert all(WHEN[name] != AFTER for name in sent)
    assert sent.count("PUT /drives/{id}") == 2
    assert len(set(sent)) == len(sent) - 1


def test_a_restore_configures_nothing_that_the_image_brings() -> None:
    assert [each.path for each in requests.restore()] == ["/metrics", "/snapshot/load"]
    load = requests.restore()[-1].body
    assert load is not None
    assert load["mem_backend"] == {"backend_type": "File", "backend_path": Names.MEMORY}  # mapped privately
    assert load["resume_vm"] is True
    assert {WHEN[endpoint(each.method, each.path)] for each in requests.restore()} <= {BEFORE, "always"}


def test_a_machine_has_no_network_and_a_read_only_root() -> None:
    paths = [each.path for each in requests.boot(SPEC, RATE)]
    assert not [path for path in paths if "network" in path or "mmds" in path]
    assert body("/drives/root")["is_read_only"] is True
    assert body("/drives/disk")["is_read_only"] is False


@pytest.mark.parametrize(("cores", "seen"), [(1, 1), (2, 2), (3, 4), (31, 32), (32, 32), (64, 32)])
def test_processors_are_one_or_even(cores: int, seen: int) -> None:
    assert requests.vcpus(cores) == seen


def test_drives_are_held_back_by_both_bounds() -> None:
    assert body("/drives/disk")["rate_limiter"] == {
        "bandwidth": {"size": 1 << 20, "one_time_burst": 1 << 20, "refill_time": 1000},
        "ops": {"size": 100, "one_time_burst": 100, "refill_time": 1000},
    }
    assert "rate_limiter" not in body("/drives/disk", rate=None)


def test_memory_comes_back_by_itself_and_no_guest_is_believed_about_its_own() -> None:
    balloon = body("/balloon")
    assert (balloon["free_page_reporting"], balloon["deflate_on_oom"]) == (True, True)
    assert balloon["stats_polling_interval_s"] == 0


def test_the_kernel_is_told_its_bounds() -> None:
    line = str(body("/boot-source")["boot_args"]).split()
    assert {"wardian_processes=256", "wardian_link=vsock", "a=b"} <= set(line)
    assert "wardian_echo" not in line


# ── the jail


def test_the_jailer_is_told_all_there_is(tmp_path: Path) -> None:
    jail = Jail(tmp_path, "m0123456789abcdef")
    words = list(command(TOOLS, jail, RESOURCES, uid=70000, cgroup_parent="wardian-x"))
    assert words[:5] == ["/usr/bin/unshare", "--net", "--ipc", "--uts", "--"]  # no network of the host's
    own, theirs = words[5 : words.index("--", 5)], words[words.index("--", 5) + 1 :]
    told = dict(zip(own[1::2], own[2::2], strict=False))
    assert own[0] == "/opt/jailer"
    assert (told["--id"], told["--uid"], told["--gid"]) == (jail.id, "70000", "70000")
    assert (told["--exec-file"], told["--chroot-base-dir"]) == ("/opt/firecracker", str(tmp_path))
    assert (told["--cgroup-version"], told["--parent-cgroup"]) == ("2", "wardian-x")
    assert own[-2:] == ["--new-pid-ns", "--daemonize"]
    assert theirs == ["--api-sock", "/api.sock"]  # and its own system call filter, which is on by default
    assert "--no-seccomp" not in words


def test_the_control_group_bounds_memory_processors_and_threads() -> None:
    assert cgroup_settings(RESOURCES) == (
        f"memory.max={(512 + 64) << 20}",
        "memory.swap.max=0",
        "cpu.max=300000 100000",
        "pids.max=64",
    )


def test_what_a_machine_reads_is_the_same_file_for_all(tmp_path: Path) -> None:
    source = tmp_path / "memory"
    source.write_bytes(b"pages")
    jails = [Jail(tmp_path / "jails", name) for name in ("m1", "m2")]
    for jail in jails:
        jail.create()
        jail.lend(source, Names.MEMORY)
        jail.lend(source, Names.MEMORY)  # again
    assert len({(jail / Names.MEMORY).stat().st_ino for jail in jails} | {source.stat().st_ino}) == 1
    jails[0].remove()
    jails[0].remove()
    assert source.read_bytes() == b"pages"


# ── versions and counters


@pytest.mark.parametrize(
    ("program", "jailer", "words"),
    [("1.16.2", "1.16.1", "one release"), ("1.15.9", "1.15.9", "too old"), ("1.16.1", "1.16.1", "too old")],
)
def test_versions_that_will_not_do_are_refused(program: str, jailer: str, words: str) -> None:
    with pytest.raises(FirecrackerUnusable, match=words):
        checked_versions(program, jailer)


def test_versions_that_will_do() -> None:
    assert [checked_versions(each, each) for each in ("1.16.2", "1.17.0", "2.0.0")]


def test_counters_are_added_up_and_nonsense_counts_as_nothing(tmp_path: Path) -> None:
    path = tmp_path / "metrics"
    assert read_counters(path) == Counters()
    path.write_bytes(
        b'{"block": {"read_bytes": 5, "rate_limiter_throttled_events": 1},'
        b' "vsock": {"tx_packets_count": 2}}\n'
        b'{"block": {"read_bytes": 6, "write_bytes": true}, "vsock": []}\n'
        b"not JSON\n[]\n"
        b'{"block": {"read_bytes": 100'  # torn
    )
    assert read_counters(path) == Counters(read_bytes=11, throttled=1, link_out_packets=2)
