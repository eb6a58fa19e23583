"""Fetching images, by skopeo: the host's certificates hold, its credentials do not, and it gets no farther
than the outlet leads.

What comes is copied into a layout in a scratch directory; nothing in it is believed before it is checked.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import which
from threading import Event

from wardian.images.oci.config import host_architecture
from wardian.images.oci.outlet import Outlet, is_loopback
from wardian.images.oci.reference import Reference
from wardian.model.errors import Unavailable, WardianError

BLOB_MAX = 16 << 30
"""No file that skopeo writes may be longer, whatever a registry sends."""

TIMEOUT = "30m"
TAG = "image"
POLICIES = (Path("/etc/containers/policy.json"), Path.home() / ".config/containers/policy.json")


class FetchFailed(WardianError):
    """skopeo could not get the image; the message is its own."""

    kind, code = Unavailable.kind, "image_fetch_failed"


class Fetcher:
    """One image, its credentials, the way to it and a scratch directory. ``stop`` ends it early."""

    def __init__(
        self,
        reference: Reference,
        scratch: Path,
        outlet: Outlet,
        *,
        username: str = "",
        password: str = "",
        stop: Event | None = None,
    ) -> None:
        self._reference, self._scratch, self._outlet = reference, scratch, outlet
        self._username, self._password, self._stop = username, password, stop

    def digest(self) -> str:
        """The digest of what the reference means now: a manifest, or a list of several processors'."""
        return f"sha256:{hashlib.sha256(self._run('inspect', '--raw', *self._tls('')).encode()).hexdigest()}"

    def fetch(self) -> Path:
        """Copy it, for this host's processor, into a layout; the layout's directory."""
        layout = self._scratch / "layout"
        self._run("copy", "--quiet", *self._tls("src-"), after=(f"oci:{layout}:{TAG}",))
        return layout

    def _tls(self, which_end: str) -> Sequence[str]:
        """No TLS is asked of a registry on this very host, as container engines do."""
        return [f"--{which_end}tls-verify=false"] if is_loopback(self._reference.place[0]) else []

    def _run(self, verb: str, *options: str, after: Sequence[str] = ()) -> str:
        if not which("skopeo"):
            raise Unavailable("skopeo is missing", code="program_missing", hint="run `make setup`")
        environment = {name: value for name, value in os.environ.items() if name != "REGISTRY_AUTH_FILE"}
        with self._authfile() as auth:
            command = [
                *("prlimit", f"--fsize={BLOB_MAX}", "skopeo", f"--command-timeout={TIMEOUT}"),
                *([] if any(path.exists() for path in POLICIES) else ["--insecure-policy"]),
                *("--override-os=linux", f"--override-arch={host_architecture()}"),
                *(verb, "--authfile" if verb == "inspect" else "--src-authfile", str(auth), *options),
                *("--", str(self._reference), *after),
            ]
            done = self._outlet.run(command, environment, stop=self._stop)
        if done.returncode:
            raise FetchFailed(
                f"{self._reference} cannot be fetched: {self._reason(done.stderr.decode(errors='replace'))}",
                hint="check its name, and the user name and password if it is private",
            )
        return done.stdout.decode(errors="surrogateescape")

    def _reason(self, said: str) -> str:
        """skopeo's last line, without its time stamps, and never with a password in it."""
        last = said.strip().splitlines()[-1:] or ["it did not say why"]
        words = last[0].partition(" msg=")[2].strip('"') or last[0]
        return words.replace(self._password, "…")[-600:] if self._password else words[-600:]

    @contextmanager
    def _authfile(self) -> Iterator[Path]:
        """Credentials in a file that only we can read, for as long as skopeo runs; also when there are none,
        or the host's own would be used for a stranger."""
        path = self._scratch / "auth.json"
        pair = base64.b64encode(f"{self._username}:{self._password}".encode()).decode()
        auths = {self._reference.registry: {"auth": pair}} if self._username or self._password else {}
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            with os.fdopen(descriptor, "w") as file:
                json.dump({"auths": auths}, file)
            yield path
        finally:
            path.unlink()
