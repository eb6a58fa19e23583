"""Templates as they are looked at, and parts of the protocol that are absent."""

from __future__ import annotations

import httpx
import pytest
from tests.unit.control_plane.double import BASE, OTHER_KEY, refused


async def test_templates_are_looked_at_published_and_deleted(client: httpx.AsyncClient) -> None:
    for path in ("/templates", "/v2/templates"):
        told = (await client.get(path)).json()
        assert [(one["templateID"], one["public"]) for one in told] == [("base", True), ("tmpl2", False)]
    assert [one["templateID"] for one in (await client.get("/default-templates")).json()] == ["base"]
    assert (await client.get("/templates/aliases/base")).json() == {"templateID": "base", "public": True}
    builds = (await client.get("/templates/base")).json()["builds"]
    assert builds[0]["buildID"] == BASE.build.id
    refused(await client.get("/templates/aliases/none"), 404, "template_not_found")
    refused(await client.patch("/v2/templates/base", json={"public": False}), 403, "template_not_yours")
    assert (await client.patch("/v2/templates/mine", json={"public": True})).json() == {"names": ["t1/mine"]}
    elsewhere = {"X-API-KEY": OTHER_KEY}
    assert (await client.get("/templates/aliases/t1/mine", headers=elsewhere)).json()["public"] is True
    assert (await client.delete("/templates/mine", headers=elsewhere)).status_code == 404
    assert (await client.delete("/templates/mine")).status_code == 204
    refused(await client.get("/templates/mine"), 404, "template_not_found")


@pytest.mark.parametrize("path", ["/api-keys", "/access-tokens"])
async def test_absent_parts_say_so(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    assert (answer.status_code, answer.headers["should-retry"]) == (501, "false")
