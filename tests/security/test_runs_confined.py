"""A key that may not do something cannot have it done by a run: not by one that it begins, by a webhook, by
a child, or by having another key's run go on."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest
from tests.acceptance.conftest import serve, stop
from tests.acceptance.running import House
from tests.acceptance.templates import key_of
from tests.acceptance.test_triggers import deliver, signed

pytestmark = pytest.mark.timeout(300)

ASK = 'run.step("one", lambda: 1)\nrun.ask("?")\n'
CALL = 'run.call("asker")\n'


@pytest.fixture(scope="module")
def free(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WARDIAN_DRIVERS", "gvisor")
        server = serve(tmp_path_factory.mktemp("confined"))
    house = House(server)
    house.freeze("asker", ASK)
    house.freeze("caller", CALL)
    yield house
    house.http.close()
    stop(server)


def other(free: House, *options: str) -> House:
    """The same tenant, with a key of its own."""
    house = House(free.server)
    house.http.headers["X-API-KEY"] = key_of(free.server, tenant_of(free), *options)
    return house


def tenant_of(free: House) -> str:
    return str(
        free.http.get("/teams", headers={"Authorization": f"Bearer {free.server.key}"}).json()[0]["teamID"]
    )


@pytest.fixture(scope="module")
def inward(free: House) -> Iterator[House]:
    house = other(free, "--egress", "none")
    yield house
    house.http.close()


def reaches_out(house: House, run: str) -> bool:
    """Whether the machine of a run that asks something may reach the internet."""
    told = house.until(run, lambda told: told["state"] == "waiting" and told["waits"][0]["kind"] == "ask")
    sandbox = house.http.get(f"/sandboxes/{told['sandboxID']}").json()
    house.call("POST", f"/runs/{run}/cancel")
    return "denyOut" not in (sandbox.get("network") or {})


def child_of(house: House, run: str) -> str:
    return str(house.until(run, lambda told: bool(told["waits"]))["waits"][0]["run"])


def test_a_key_that_may_not_go_out_begins_no_run_that_does(free: House, inward: House) -> None:
    assert reaches_out(free, free.begin("asker"))
    assert not reaches_out(inward, inward.begin("asker"))
    caller = inward.begin("caller")
    assert not reaches_out(inward, child_of(inward, caller))
    inward.call("POST", f"/runs/{caller}/cancel")


def test_nor_by_a_webhook_of_its_own(free: House, inward: House) -> None:
    for house, out in ((free, True), (inward, False)):
        made = house.call("POST", "/agents/asker/webhooks").json()
        body = b"{}"
        run = deliver(house, made["path"], body, signed(made["secret"], body)).json()["runID"]
        assert reaches_out(house, run) is out


def test_nor_by_an_agent_that_others_run(free: House, inward: House) -> None:
    inward.freeze("trap", ASK)
    assert not reaches_out(free, free.begin("trap"))
    inward.freeze("trap", ASK, egress="internet")  # its key goes before what it says
    assert not reaches_out(free, free.begin("trap"))
    free.freeze("trap", ASK, egress="internet")
    assert reaches_out(free, free.begin("trap"))


def test_nor_by_having_a_run_go_on(free: House, inward: House) -> None:
    run = free.begin("asker")
    assert reaches_out(free, run)  # and is cancelled by then
    forked = inward.call("POST", f"/runs/{run}/fork", {}).json()["runID"]
    assert not reaches_out(inward, forked)
    assert inward.call("POST", f"/runs/{run}/retry").status_code == 200
    assert not reaches_out(inward, run)
    assert inward.call("POST", f"/runs/{run}/rewind", {"commit": 0}).status_code == 200
    assert not reaches_out(free, run)


STAYS = """
run.step("one", lambda: 1)
run.emit("there")
while not os.path.exists("/home/user/go"):
    time.sleep(0.02)
run.ask("?")
"""


def test_a_machine_made_anew_reaches_no_further(free: House) -> None:
    free.freeze("hermit", STAYS, egress="none")
    run = free.begin("hermit")
    while not free.told(run):
        time.sleep(0.05)
    os.kill(free.machine(run)["sentry"]["pid"], signal.SIGKILL)
    told = free.until(run, lambda told: told["epoch"] == 2 and told["state"] == "running")
    free.files(told["sandboxID"])("POST", "go", files={"file": b""})
    assert not reaches_out(free, run)


def test_a_key_that_demands_a_wall_begins_no_run_behind_a_weaker_one(free: House) -> None:
    strict = other(free, "--minimum-isolation", "microvm")
    for name in ("asker", "caller"):
        told = strict.end(strict.begin(name))
        assert (told["state"], told["failure"]["code"]) == ("failed", "isolation_unavailable")
        assert (told["attempts"], told["sandboxID"]) == (1, None)
    strict.http.close()
