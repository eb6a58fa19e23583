"""Clients of other languages, intercepted: each trusts the bridge by itself, and has no key of its own."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Iterator
from urllib.parse import parse_qsl, quote

import pytest
from e2b import Sandbox
from tests.acceptance.bridge_upstreams import Upstreams, upstreams
from tests.acceptance.bridged import AWS, SECRET, bridged, new_box, run
from tests.acceptance.conftest import Server
from tests.acceptance.templates import build

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

DOCKERFILE = """FROM base
RUN mkdir -p /usr/share/man/man1 && apt-get update
RUN apt-get install -y --no-install-recommends nodejs default-jdk-headless
RUN pip install --break-system-packages boto3
"""
NODE = """
(async () => {
  const headers = {authorization: `Bearer ${process.env.WARDIAN_TOKEN}`};
  const answer = await fetch("https://api.test/echo", {method: "POST", headers, body: "from node"});
  console.log(answer.status, (await answer.json()).body);
})();
"""
JAVA = """
import java.net.URI;
import java.net.http.*;
class Ask {
  public static void main(String[] args) throws Exception {
    var request = HttpRequest.newBuilder(URI.create("https://api.test/echo"))
        .header("Authorization", "Bearer " + System.getenv("WARDIAN_TOKEN"))
        .POST(HttpRequest.BodyPublishers.ofString("from java")).build();
    var answer = HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString());
    System.out.println(answer.statusCode() + " " + answer.body().contains("from java"));
  }
}
"""
BOTO3 = """
import io, os, boto3
from botocore.config import Config
s3 = boto3.client("s3", region_name="eu-west-1", endpoint_url="https://bucket.test",
    aws_access_key_id="dummy", aws_secret_access_key="dummy", aws_session_token=os.environ["WARDIAN_TOKEN"],
    config=Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required",
        response_checksum_validation="when_required", retries={"max_attempts": 0}))
for answer in (
    s3.put_object(Bucket="bucket", Key="a key+1", Body=b"from boto3"),
    s3.put_object(Bucket="bucket", Key="stream", Body=io.BytesIO(b"x" * 100000)),
    s3.get_object(Bucket="bucket", Key="a key+1"),
):
    print(answer["ResponseMetadata"]["HTTPStatusCode"])
"""


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upstreams]:
    with upstreams(tmp_path_factory.mktemp("upstreams")) as made:
        yield made


@pytest.fixture(scope="module")
def server(far: Upstreams, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with bridged(far, tmp_path_factory.mktemp("clients")) as started:
        yield started


@pytest.fixture(scope="module")
def box(server: Server, far: Upstreams, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    place = tmp_path_factory.mktemp("template")
    (place / "Dockerfile").write_text(DOCKERFILE)
    build(server, place, "--name", "clients")
    made = new_box(server, far, template="clients", timeout=600)
    yield made
    made.kill()


def test_fetch_of_node(box: Sandbox, far: Upstreams) -> None:
    far.seen.clear()
    box.files.write("/tmp/ask.js", NODE)
    assert run(box, "node /tmp/ask.js").splitlines() == ["200 from node"]
    assert far.requests("/echo")[-1][2]["authorization"] == f"Bearer {SECRET}"


def test_the_client_of_java(box: Sandbox, far: Upstreams) -> None:
    far.seen.clear()
    box.files.write("/tmp/Ask.java", JAVA)
    assert run(box, "java /tmp/Ask.java").splitlines() == ["200 true"]
    assert far.requests("/echo")[-1][2]["authorization"] == f"Bearer {SECRET}"


def test_boto3_with_dummy_credentials(box: Sandbox, far: Upstreams) -> None:
    far.seen.clear()
    box.files.write("/tmp/ask.py", BOTO3)
    said = run(box, "python3 /tmp/ask.py")
    assert said.splitlines() == ["200"] * 3, said
    assert [(method, target) for method, target, _, _ in far.seen] == [
        ("PUT", "/bucket/a%20key%2B1"),
        ("PUT", "/bucket/stream"),
        ("GET", "/bucket/a%20key%2B1"),
    ]
    for method, target, headers, body in far.seen:
        assert headers["authorization"].endswith(signature(method, target, headers, body)), target
        assert AWS["access_key_id"] in headers["authorization"]
        assert "x-amz-security-token" not in headers
    assert far.seen[0][3] == b"from boto3"
    assert "dummy" not in json.dumps([each[2] for each in far.seen])


def signature(method: str, target: str, headers: dict[str, str], body: bytes) -> str:
    """As AWS says that a request is signed, worked out anew from what arrived."""
    match = re.fullmatch(
        r"AWS4-HMAC-SHA256 Credential=[^/]+/(\S+), ?SignedHeaders=([^,]+), ?Signature=\w+",
        headers["authorization"],
    )
    assert match, headers["authorization"]
    scope, signed = match[1], match[2].split(";")
    path, _, query = target.partition("?")
    digest = headers["x-amz-content-sha256"]
    if digest != "UNSIGNED-PAYLOAD":
        assert digest == hashlib.sha256(body).hexdigest()
    pairs = sorted((quote(k, safe="-_.~"), quote(v, safe="-_.~")) for k, v in parse_qsl(query, True))
    canonical = "\n".join(
        [
            method,
            path,
            "&".join(f"{k}={v}" for k, v in pairs),
            *(f"{name}:{' '.join(headers[name].split())}" for name in signed),
            "",
            ";".join(signed),
            digest,
        ]
    )
    to_sign = "\n".join(
        ["AWS4-HMAC-SHA256", headers["x-amz-date"], scope, hashlib.sha256(canonical.encode()).hexdigest()]
    )
    key = f"AWS4{AWS['secret_access_key']}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    return hmac.digest(key, to_sign.encode(), "sha256").hex()
