"""The template API beyond a build that goes well: cancelling, deleting, long logs, publishing, tags."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from tests.acceptance.conftest import Server
from tests.acceptance.templates import Api, is_over, key_of, messages, says

pytestmark = pytest.mark.timeout(200)

LONG = {"type": "RUN", "args": ["echo begun && sleep 1000"]}


def prints(words: str) -> dict[str, Any]:
    return {"type": "RUN", "args": [f"echo {words}"]}


@pytest.fixture
def api(server: Server) -> Iterator[Api]:
    with Api(server) as found:
        yield found


@pytest.fixture
def neighbour(server: Server) -> Iterator[Api]:
    """Another tenant."""
    with Api(server, key_of(server, "neighbour")) as found:
        yield found


def benches(server: Server) -> list[str]:
    """The sandboxes that builds work in."""
    with closing(sqlite3.connect(server.data / "wardian.db")) as database:
        query = "SELECT id FROM sandbox WHERE tenant_id LIKE '%/builds' AND state != 'ended'"
        return [row[0] for row in database.execute(query)]


def create(api: Api, template: str) -> dict[str, Any]:
    made: dict[str, Any] = api.call("POST", "/v2/sandboxes", {"templateID": template, "timeout": 60}).json()
    return made


def kill(api: Api, *sandboxes: dict[str, Any]) -> None:
    for each in sandboxes:
        assert api.call("DELETE", f"/sandboxes/{each['sandboxID']}").status_code == 204


def test_a_build_is_cancelled_and_the_one_before_stays_in_force(server: Server, api: Api) -> None:
    first = api.built("cancelled", prints("first"))
    second = api.start("cancelled", LONG)
    api.until(second, says("begun"))
    assert benches(server)
    assert api.call("DELETE", f"/wardian{second}").status_code == 204
    assert benches(server) == []
    told = api.get(f"{second}/status")
    assert (told["status"], told["reason"]["message"]) == ("error", "the build was cancelled")
    assert "begun" in messages(told)
    again = api.call("DELETE", f"/wardian{second}")
    assert (again.status_code, again.json()["message"].endswith("is over: it is error")) == (409, True)
    waiting = api.request("cancelled")
    assert api.call("DELETE", f"/wardian{waiting}").status_code == 204
    made = create(api, "cancelled")
    assert made["templateBuildID"] == first
    kill(api, made)
    assert api.call("DELETE", "/templates/cancelled").status_code == 204


def test_a_template_that_is_being_built_or_used_is_not_deleted(server: Server, api: Api) -> None:
    address = api.start("deleted", LONG)
    refused = api.call("DELETE", "/templates/deleted")
    assert (refused.status_code, "is being built" in refused.json()["message"]) == (409, True)
    api.call("DELETE", f"/wardian{address}")
    build_id = api.built("deleted", prints("x"))
    made = create(api, "deleted")
    snapshot = api.call("POST", f"/sandboxes/{made['sandboxID']}/snapshots", {}).json()["snapshotID"]
    for pause in (False, True):
        if pause:
            api.call("POST", f"/sandboxes/{made['sandboxID']}/pause")
        refused = api.call("DELETE", "/templates/deleted")
        assert (refused.status_code, "is in use" in refused.json()["message"]) == (400, True)
    kill(api, made)
    assert api.call("DELETE", "/templates/deleted").status_code == 204
    for gone in (f"{address}/status", "/templates/deleted", f"/wardian/builds/{build_id}"):
        assert api.call("GET", gone).status_code == 404
    assert not list((server.data / "builds/logs").glob(f"*{build_id}*"))
    assert create(api, "deleted")["code"] == 404
    kill(api, create(api, snapshot))  # a snapshot keeps what it stands on
    api.call("DELETE", f"/templates/{snapshot}")


def test_a_long_log_is_read_in_pages_in_both_directions(api: Api) -> None:
    address = api.start("talkative", {"type": "RUN", "args": ["seq 1 250; echo bad >&2; exit 1"]})
    api.until(address, is_over)
    whole: list[Any] = []
    while page := api.get(f"{address}/status", logsOffset=len(whole))["logEntries"]:
        assert len(page) <= 100
        whole += page
    said = [entry["message"] for entry in whole]
    numbers = [str(number) for number in range(1, 251)]
    assert [line for line in said if line in numbers] == numbers
    assert said[-1].startswith("failed to run command")
    assert [entry["message"] for entry in api.get(f"{address}/status", level="error")["logEntries"]] == said[
        -1:
    ]

    forward = api.get(f"{address}/logs", limit=100)["logs"]
    backward = api.get(f"{address}/logs", limit=100, direction="backward")["logs"]
    assert [entry["message"] for entry in forward] == said[:100]
    assert [entry["message"] for entry in backward] == said[:-101:-1]
    for bad in ({"direction": "up"}, {"level": "loud"}, {"limit": 101}, {"cursor": -1}, {"source": "x"}):
        assert api.call("GET", f"{address}/logs", **bad).status_code == 400
    assert api.call("DELETE", "/templates/talkative").status_code == 204


def test_a_published_template_is_everybodys_to_use_and_its_owners_to_change(api: Api, neighbour: Api) -> None:
    build_id = api.built("shared-with-all", prints("x"))
    name = "default/shared-with-all"
    path = "/templates/default%2Fshared-with-all"
    assert neighbour.call("GET", f"/templates/aliases/{name}").status_code == 404
    assert create(neighbour, name)["code"] == 404
    assert api.call("PATCH", "/v2/templates/shared-with-all", {"public": True}).json() == {"names": [name]}
    assert neighbour.get(f"/templates/aliases/{name}")["public"] is True
    made = create(neighbour, name)
    assert made["templateBuildID"] == build_id
    told = neighbour.get(f"/wardian/builds/{name}")
    assert (told["plan"], told["lock"]) == (None, None)
    for method, address, body in (
        ("DELETE", path, None),
        ("PATCH", f"/v2{path}", {"public": False}),
        ("POST", "/templates/tags", {"target": f"{name}:default", "tags": ["mine"]}),
        ("DELETE", "/templates/tags", {"name": name, "tags": ["x"]}),
        ("GET", f"{path}/builds/{build_id}/status", None),
        ("GET", f"{path}/builds/{build_id}/logs", None),
        ("GET", f"{path}/files/{'0' * 64}", None),
    ):
        assert neighbour.call(method, address, body).status_code == 403, (method, address)
    refused = api.call("DELETE", "/templates/shared-with-all")
    assert (refused.status_code, "is in use" in refused.json()["message"]) == (400, True)
    api.call("PATCH", "/v2/templates/shared-with-all", {"public": False})
    assert create(neighbour, name)["code"] == 404
    assert neighbour.get(f"/sandboxes/{made['sandboxID']}")["state"] == "running"
    kill(neighbour, made)
    assert api.call("DELETE", "/templates/shared-with-all").status_code == 204


def test_tags_move_and_their_history_is_kept(api: Api) -> None:
    first = api.built("tagged:v1", prints("1"), tags=["stable"])
    second = api.built("tagged:v2", prints("2"), tags=["stable"])
    path = "/templates/tagged/tags"
    in_force = {each["tag"]: each["buildID"] for each in api.get(path)}
    assert in_force == {"v1": first, "v2": second, "stable": second}
    back = api.call("POST", "/templates/tags", {"target": "tagged:v1", "tags": ["stable"]}).json()
    assert back == {"tags": ["stable"], "buildID": first}

    history = api.get(f"{path}/stable/assignments")
    assert [each["buildID"] for each in history["data"]] == [first, second, first]
    page = api.get(f"{path}/stable/assignments", limit=2)
    rest = api.get(f"{path}/stable/assignments", limit=2, cursor=page["nextCursor"])
    assert [*page["data"], *rest["data"]] == history["data"]
    assert rest["nextCursor"] is None
    groups = api.get(f"{path}/groups", assignmentLimit=1, sort="name_asc")["tags"]
    assert [(each["tag"], each["hasMore"]) for each in groups] == [
        ("stable", True),
        ("v1", False),
        ("v2", False),
    ]
    assert api.get(f"{path}/count") == {"total": 3}
    assert api.get(f"{path}/exists", tag="V1 ") == {"exists": True, "normalizedTag": "v1"}

    made = create(api, "tagged:stable")
    assert made["templateBuildID"] == first
    kill(api, made)
    assert api.call("DELETE", "/templates/tags", {"name": "tagged", "tags": ["stable"]}).status_code == 204
    assert create(api, "tagged:stable")["code"] == 404
    for tags, status in ((["stable"], 404), (["default"], 400), ([], 400)):
        assert api.call("DELETE", "/templates/tags", {"name": "tagged", "tags": tags}).status_code == status
    assert api.call("POST", "/templates/tags", {"target": "tagged:absent", "tags": ["x"]}).status_code == 404
    kept = api.get("/templates/tagged")["builds"]
    assert {each["buildID"] for each in kept} == {first, second}
    assert api.call("DELETE", "/templates/tagged").status_code == 204
