"""Files that hold keys: whole or not there, and never trusted when others can read them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from wardian.api.edge.authority import Authority
from wardian.store import private
from wardian.store.private import Exposed
from wardian.store.sealing import Seal
from wardian.vault import keys


def test_a_file_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "key"
    assert private.read(path) is None
    assert private.kept(path, lambda: b"first") == b"first"
    assert private.kept(path, lambda: pytest.fail("made again")) == b"first"
    assert path.stat().st_mode & 0o777 == 0o600
    private.publish(path, b"second")
    assert private.read(path) == b"second"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_cannot_be_put_in_place_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "key"
    (path / "in the way").mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        private.publish(path, b"secret")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o666])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    private.publish(path, b"secret")
    path.chmod(mode)
    for read in (private.read, Seal.kept_in, lambda path: keys.from_file(path, may_make=True)):
        with pytest.raises(Exposed, match="chmod 600") as refused:
            read(path)
        assert refused.value.code == "key_exposed"


def test_an_authority_that_others_can_read_vouches_for_nothing(tmp_path: Path) -> None:
    Authority.open(tmp_path, "sandbox.test")
    (secret,) = (path for path in tmp_path.rglob("*.pem") if path.stat().st_mode & 0o777 == 0o600)
    os.chmod(secret, 0o644)
    with pytest.raises(Exposed):
        Authority.open(tmp_path, "sandbox.test")
