"""``kill -9`` of the server at every step of every act: the next one loses nothing and leaves nothing."""

from __future__ import annotations

import pytest
from tests.faults.conftest import Host

STEPS = [
    ("create", "create.intended", set()),
    ("create", "create.attached", set()),
    ("create", "create.committed", {"running"}),
    ("pause", "pause.intended", {"running"}),
    ("pause", "pause.quiesced", {"running"}),
    ("pause", "pause.captured", {"running"}),
    ("pause", "snapshot.synced", {"running"}),
    ("pause", "snapshot.manifest", {"running"}),
    ("pause", "snapshot.renamed", {"paused"}),
    ("pause", "pause.published", {"paused"}),
    ("pause", "pause.committed", {"paused"}),
    ("resume", "resume.intended", {"paused"}),
    ("resume", "resume.attached", {"paused"}),
    ("resume", "resume.committed", {"running"}),
    ("pause_files", "pause.captured", {"running"}),
    ("pause_files", "snapshot.renamed", {"paused"}),
    ("pause_files", "pause.committed", {"paused"}),
    ("boot", "resume.attached", {"paused"}),
    ("boot", "resume.committed", {"running"}),
    ("reboot", "resume.files_read", {"paused"}),
    ("compress", "snapshot.packed", {"paused"}),
    ("compress", "snapshot.beside", {"paused"}),
    ("compress", "snapshot.dropped", {"paused"}),
    ("expand", "snapshot.expanded", {"paused"}),
    ("expand", "snapshot.whole", {"paused"}),
    ("fork", "fork.intended", {"running"}),
    ("fork", "fork.captured", {"running"}),
    ("fork", "create.intended", {"running"}),
    ("fork", "create.attached", {"running"}),
    ("snapshot", "snapshot.intended", {"running"}),
    ("snapshot", "snapshot.renamed", {"running"}),
    ("snapshot", "snapshot.published", {"running"}),
    ("kill", "kill.intended", set()),
    ("kill", "kill.killed", set()),
    ("kill", "kill.committed", set()),
    ("kill_paused", "kill.intended", set()),
    ("kill_paused", "kill.committed", set()),
]


@pytest.mark.parametrize(("scenario", "at", "states"), STEPS)
def test_a_server_killed_at_any_step_loses_and_leaks_nothing(
    host: Host, scenario: str, at: str, states: set[str]
) -> None:
    died = host.serve(scenario, at=at)
    assert died["killed"], "the checkpoint was never reached"
    found = host.serve("survey")["told"]
    assert {s["state"] for s in found["sandboxes"].values()} == states
    assert len(found["sandboxes"]) == len(states), "nobody was told of a fork"
    if scenario != "create":
        assert all(s["count"] != "none" for s in found["sandboxes"].values())
    assert found["snapshots"] == 0
    host.assert_nothing_is_left()


def test_a_sandbox_runs_on_while_its_server_is_dead(host: Host) -> None:
    assert host.serve("run_on")["killed"]
    sandbox_id, count = (host.data / "acknowledged").read_text().split()
    found = host.serve("survey")["told"]
    assert found["attached"] == [sandbox_id]
    assert int(found["sandboxes"][sandbox_id]["count"]) > int(count)
    host.assert_nothing_is_left()


@pytest.mark.parametrize("scenario", ["create", "pause", "resume", "fork"])
def test_a_server_that_stops_in_order_keeps_its_sandboxes(host: Host, scenario: str) -> None:
    sandbox_id = host.serve(scenario)["told"]["id"]
    found = host.serve("survey")["told"]["sandboxes"]
    assert found[sandbox_id]["state"] == ("paused" if scenario == "pause" else "running")
    assert len(found) == (3 if scenario == "fork" else 1)
    host.assert_nothing_is_left()
