"""What runs may use through the bridge, and whose: an agent's grants and budgets."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.acceptance.conftest import serve, stop
from tests.acceptance.running import House
from tests.counting import counting

pytestmark = pytest.mark.timeout(300)


ASKS = """
import urllib.error, urllib.request
def ask():
    token = open("/run/wardian/token").read().strip()
    try:
        asked = urllib.request.Request(
            "http://bridge.wardian.internal/far/", headers={"Authorization": "Bearer " + token}
        )
        return urllib.request.urlopen(asked, timeout=20).status
    except urllib.error.HTTPError as error:
        return json.loads(error.read())["error"]["code"]
    except OSError as error:
        return type(error).__name__
out = [ask()]
if run.input:
    out += run.call("spender", run.input - 1)
out.append(ask())
run.result(out)
"""


def test_what_an_agent_may_use_counts_for_all_that_come_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WARDIAN_ALLOWED_NETWORKS", "127.0.0.0/8")
    monkeypatch.setenv("WARDIAN_DRIVERS", "gvisor")
    house = House(serve(tmp_path))
    try:
        with counting() as far:
            house.http.post("/secrets", json={"name": "key", "value": "sk-of-the-far-one-1234"})
            assert house.call("POST", "/grants", far.grant("far", agent="spender")).is_success
            house.freeze("spender", ASKS, budget={"calls": 3})
            told = house.end(house.begin("spender", 1))
            # Parent, child, child; then the parent's budget is used up, though its child's own is not.
            assert told["result"] == [200, 200, 200, "budget_exceeded"]
            assert far.calls == 3
            assert house.end(house.begin("spender", 0))["result"] == [200, 200]  # another tree's budget
            house.freeze("other", ASKS)
            refused = house.end(house.begin("other", 0))["result"]
            assert 200 not in refused  # a grant for one agent is not another's
            assert far.calls == 5
    finally:
        house.http.close()
        stop(house.server)
