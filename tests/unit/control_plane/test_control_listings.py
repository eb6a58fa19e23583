"""Listings, metrics and logs: filtered, ordered, paged, and in the protocol's units."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from tests.unit.control_plane.double import ID, Service, refused

from wardian.sandboxes.service import ListQuery


async def test_a_listing_is_filtered_ordered_and_paged(client: httpx.AsyncClient, service: Service) -> None:
    answer = await client.get(
        "/v2/sandboxes?metadata=a%252520b%3Dc%252526d%26e%3D%25252B&state=running%2Cpaused&limit=7&order=asc"
        "&startedAfter=2023-11-14T22:13:20.5Z&template=Base"
    )
    assert service.asked == (
        ListQuery(
            states=frozenset({"running", "paused"}),
            metadata={"a b": "c&d", "e": "+"},
            template="base",
            started_after_us=1_700_000_000_000_000,
            ascending=True,
            limit=7,
        ),
    )
    assert answer.headers["x-next-token"] == "cursor1"
    assert answer.headers["x-total-running"] == "1"
    assert answer.json()[0]["endAt"] == "2023-11-14T22:18:20.000007Z"
    last = await client.get("/v2/sandboxes", params={"nextToken": "cursor1"})
    assert "x-next-token" not in last.headers
    await client.get("/sandboxes")
    assert service.asked[0].states == frozenset({"running"})


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("limit=0", "bad_limit"),
        ("limit=101", "bad_limit"),
        ("limit=x", "invalid_argument"),
        ("order=up", "bad_order"),
        ("state=asleep", "bad_state"),
        ("startedAfter=yesterday", "bad_time"),
        ("metadata=novalue", "bad_metadata_filter"),
        ("nextToken=" + "x" * 600, "bad_cursor"),
    ],
)
async def test_a_bad_listing_is_refused(client: httpx.AsyncClient, query: str, code: str) -> None:
    refused(await client.get(f"/v2/sandboxes?{query}"), 400, code)


async def test_metrics_in_the_protocols_units(client: httpx.AsyncClient, service: Service) -> None:
    answer = await client.get(f"/sandboxes/{ID}/metrics", params={"start": 5, "end": 6})
    assert service.asked == (5_000_000, 6_999_999)
    assert answer.json() == [
        {
            "timestamp": "2023-11-14T22:13:20.500000Z",
            "timestampUnix": 1_700_000_000,
            "cpuCount": 2,
            "cpuUsedPct": 12.5,
            "memUsed": 1,
            "memTotal": 2,
            "memCache": 3,
            "diskUsed": 4,
            "diskTotal": 5,
        }
    ]
    many = (await client.get("/sandboxes/metrics", params={"sandbox_ids": f"{ID},igone"})).json()
    assert set(many["sandboxes"]) == {ID}


async def test_logs_are_the_events(client: httpx.AsyncClient, service: Service) -> None:
    service.events_held = [
        {"seq": n, "at": n * 1_000_000, "type": kind, "pid": n, "prev": "0"}
        for n, kind in enumerate(["created", "process_started", "pause_failed"], start=1)
    ]
    v1 = (await client.get(f"/sandboxes/{ID}/logs", params={"start": 2000})).json()
    assert [entry["fields"]["event"] for entry in v1["logEntries"]] == ["process_started", "pause_failed"]
    line = json.loads(v1["logs"][0]["line"])
    assert (line["message"], line["level"], line["pid"]) == ("process started: pid=2", "info", "2")

    async def found(**query: Any) -> list[str]:
        answer = await client.get(f"/v2/sandboxes/{ID}/logs", params=query)
        return [entry["message"].partition(":")[0] for entry in answer.json()["logs"]]

    assert await found() == ["created", "process started", "pause failed"]
    assert await found(direction="backward", limit=2) == ["pause failed", "process started"]
    assert await found(direction="backward", cursor=2000) == ["process started", "created"]
    assert await found(level="error") == ["pause failed"]
    assert await found(search="process") == ["process started"]
    assert await found(cursor=2000, limit=1) == ["process started"]


async def test_long_logs_are_read_in_pages(client: httpx.AsyncClient, service: Service) -> None:
    service.events_held = [{"seq": n, "at": n, "type": "x", "prev": ""} for n in range(1, 2501)]
    answer = await client.get(f"/v2/sandboxes/{ID}/logs", params={"direction": "backward", "limit": 1000})
    logs = answer.json()["logs"]
    assert (len(logs), logs[0]["fields"]["seq"], logs[-1]["fields"]["seq"]) == (1000, "2500", "1501")
