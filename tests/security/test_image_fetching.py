"""Whoever names an image makes this host connect somewhere: never to itself, nor to a neighbour.

With the real skopeo, in the network of its own that it gets. What must not be reached is a listener that
counts.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.images.caches import own_cache
from tests.images.oci_images import image, layer
from tests.images.registry import REPOSITORY, TAG, registry

from wardian.images.bases import Bases
from wardian.images.catalog import Catalog
from wardian.images.oci import outlet
from wardian.images.oci.fetch import FetchFailed
from wardian.images.oci.outlet import Outlet
from wardian.model.errors import Forbidden
from wardian.network.policy import Policy

MADE = image([layer({"etc/passwd": b"root:x:0:0::/root:/bin/sh\n"})])


class Victim:
    """A service of this host's that nobody may be made to call. ``calls`` are what it was told."""

    def __init__(self) -> None:
        self.calls: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(5)
                self.calls.append(connection.recv(4096))

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def victim() -> Iterator[Victim]:
    found = Victim()
    yield found
    found.close()


def public_only(address: str, port: int) -> bool:
    return Policy().connect(address, port).allowed


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(own_cache(tmp_path / "cache"))


@contextmanager
def answering(monkeypatch: pytest.MonkeyPatch, *answers: Sequence[str]) -> Iterator[list[str]]:
    """Names mean these addresses, one answer after the other, and then the last; the names asked for."""
    asked: list[str] = []

    def resolve(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return answers[min(len(asked), len(answers)) - 1]

    with monkeypatch.context() as patch:
        patch.setattr(outlet, "_resolve", resolve)
        yield asked


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "localhost", "10.0.0.1", "169.254.169.254", "192.168.1.1", "0.0.0.0"]
)
def test_an_inner_registry_is_refused_before_anything_is_asked(catalog: Catalog, address: str) -> None:
    bases = Bases(catalog, Outlet(public_only))
    with pytest.raises(Forbidden, match=r"not on the public internet.*WARDIAN_PRIVATE_REGISTRIES"):
        bases.image(f"docker://{address}:5000/a/b")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "169.254.169.254", "10.1.2.3"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_no_redirect_of_a_registry_leads_inside(
    catalog: Catalog, victim: Victim, host: str, scheme: str
) -> None:
    with registry(MADE, blobs_at=f"{scheme}://{host}:{victim.port}/x") as place:
        bases = Bases(catalog, Outlet(public_only, frozenset({place})))
        with pytest.raises((Forbidden, FetchFailed)):
            bases.image(f"docker://{place}/{REPOSITORY}:{TAG}")
    assert victim.calls == []


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_no_token_service_leads_inside(catalog: Catalog, victim: Victim, scheme: str) -> None:
    with registry(MADE, tokens_at=f"{scheme}://127.0.0.1:{victim.port}/token") as place:
        bases = Bases(catalog, Outlet(public_only, frozenset({place})))
        with pytest.raises((Forbidden, FetchFailed)):
            bases.image(f"docker://{place}/{REPOSITORY}:{TAG}")
    assert victim.calls == []


def test_the_victim_would_be_called_if_it_might(catalog: Catalog, victim: Victim) -> None:
    """Or the tests above would say nothing."""
    at = f"127.0.0.1:{victim.port}"
    with registry(MADE, tokens_at=f"http://{at}/token") as place:
        bases = Bases(catalog, Outlet(public_only, frozenset({place, at})))
        with pytest.raises(FetchFailed):
            bases.image(f"docker://{place}/{REPOSITORY}:{TAG}")
    assert victim.calls
    assert victim.calls[0].startswith(b"GET /token")


def test_a_name_that_means_another_address_the_second_time_is_not_followed(
    catalog: Catalog, victim: Victim, monkeypatch: pytest.MonkeyPatch
) -> None:
    bases = Bases(catalog, Outlet(public_only))
    with (
        answering(monkeypatch, ["93.184.216.34"], ["127.0.0.1"]) as asked,
        pytest.raises(Forbidden, match=r"rebound\.test"),
    ):
        bases.image(f"docker://rebound.test:{victim.port}/a/b")
    assert set(asked) == {"rebound.test"}
    assert victim.calls == []


def test_what_is_dialled_is_what_was_looked_at(
    catalog: Catalog, victim: Victim, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several addresses the one that may be reached, as it was found, without asking again."""

    def allows(address: str, port: int) -> bool:
        return address == "127.0.0.1"

    bases = Bases(catalog, Outlet(allows))
    with answering(monkeypatch, ["10.0.0.1", "127.0.0.1"]) as asked, pytest.raises(FetchFailed):
        bases.image(f"docker://both.test:{victim.port}/a/b")
    assert len(victim.calls) == len(asked) - 1  # the first was the check
    assert all(call.startswith(b"\x16\x03") for call in victim.calls), "TLS, and nothing else"


def test_the_proxy_of_the_host_is_asked_to_go_on(
    catalog: Catalog, victim: Victim, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For names that only it may know; for an inner address it is not."""
    monkeypatch.setenv("https_proxy", f"http://me:secret@127.0.0.1:{victim.port}")
    bases = Bases(catalog, Outlet(public_only))
    with pytest.raises(FetchFailed):
        bases.image("docker://registry.invalid/a/b")
    assert victim.calls[0].startswith(b"CONNECT registry.invalid:443 HTTP/1.1\r\n")
    assert b"Proxy-Authorization: Basic bWU6c2VjcmV0\r\n" in victim.calls[0]
    victim.calls.clear()
    with registry(MADE, blobs_at="https://10.1.2.3/x") as place:
        bases = Bases(catalog, Outlet(public_only, frozenset({place})))
        with pytest.raises(Forbidden, match=r"10\.1\.2\.3:443"):
            bases.image(f"docker://{place}/{REPOSITORY}:{TAG}")
    assert victim.calls == []


def test_a_fetch_is_stopped(catalog: Catalog) -> None:
    """A registry that never answers holds nothing up for longer than it is waited for."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"127.0.0.1:{silent.getsockname()[1]}"
        bases = Bases(catalog, Outlet(public_only, frozenset({place})))
        stop = threading.Event()

        def stop_when_called() -> None:
            with silent.accept()[0] as connection:
                stop.set()
                connection.recv(1 << 16)
                connection.recv(1)  # until it hangs up

        waiting = threading.Thread(target=stop_when_called)
        waiting.start()
        with pytest.raises(FetchFailed):
            bases.image(f"docker://{place}/a/b", stop=stop)
        waiting.join()
    assert not list(catalog.cache.glob("fetching-*"))
