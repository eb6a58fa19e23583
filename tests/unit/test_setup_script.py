"""The set-up: it looks before it does anything, derives what it adds, and says why it stops."""

from __future__ import annotations

import importlib.util
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

import pytest

from wardian.images.debian import Source

ROOT = Path(__file__).resolve().parents[2]
BOOKWORM = Source("http://mirror.example/debian", "bookworm", ("main",), "/usr/share/keyrings/k.gpg")


class Ran(list[str]):
    """The commands that would have been run."""

    def __call__(
        self, command: Sequence[str], environment: Mapping[str, str] | None = None, *, input_text: str = ""
    ) -> None:
        self.append(" ".join(command))
        if input_text:
            self.append(input_text)


@pytest.fixture
def script() -> ModuleType:
    """scripts/setup.py as a module of its own."""
    spec = importlib.util.spec_from_file_location("setup_script", ROOT / "scripts/setup.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def ran(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Ran:
    """Runs nothing: a Debian 12 as root, with one mirror and no packages."""
    commands = Ran()
    monkeypatch.setattr(script, "run", commands)
    monkeypatch.setattr(script, "codename", lambda: "bookworm")
    monkeypatch.setattr(script, "sudo", lambda environment=None: [])
    monkeypatch.setattr(script.debian, "host_sources", lambda: (BOOKWORM,))
    return commands


def test_a_machine_that_is_ready_is_left_alone() -> None:
    """Every step only looks; this is what `make demo` does the second time."""
    for _ in range(2):  # whoever runs the tests may not have set up since the last change
        done = subprocess.run([ROOT / "scripts/setup.sh"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    marks = [line.split()[0] for line in done.stderr.splitlines()]
    assert marks == ["✓"] * 6 + ["set-up"]


def test_backports_come_from_the_mirror_in_use(script: ModuleType, ran: Ran) -> None:
    """The same archive, the same key, another suite; nothing of ours names a host."""
    script.add_backports()
    assert ran[0] == f"tee {script.BACKPORTS_FILE}"
    assert "URIs: http://mirror.example/debian\nSuites: bookworm-backports\n" in ran[1]
    assert "Signed-By: /usr/share/keyrings/k.gpg\n" in ran[1]


def test_backports_are_added_once(script: ModuleType, ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither when they are there, nor where a later release needs none."""
    there = Source(BOOKWORM.uri, "bookworm-backports", ("main",))
    monkeypatch.setattr(script.debian, "host_sources", lambda: (BOOKWORM, there))
    script.add_backports()
    monkeypatch.setattr(script, "codename", lambda: "trixie")
    monkeypatch.setattr(script.debian, "host_sources", lambda: ())
    script.add_backports()
    assert ran == []


def test_a_machine_without_a_mirror_is_told_what_to_do(
    script: ModuleType, ran: Ran, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mirror is never made up."""
    monkeypatch.setattr(script.debian, "host_sources", lambda: ())
    with pytest.raises(script.SetupError, match=r"debian\.sources"):
        script.add_backports()


def test_gvisor_is_asked_of_backports_and_the_rest_is_not(script: ModuleType, ran: Ran) -> None:
    """Nothing else of the machine moves to newer versions."""
    script.install(["gcc", "runsc"])
    assert ran == [
        "apt-get install -y --no-install-recommends gcc",
        "apt-get install -y --no-install-recommends -t bookworm-backports runsc",
    ]


def test_pips_index_is_respected(script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From the environment first, then from its configuration; uv gets to know it with the lock's hashes."""
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    config = tmp_path / "pip.conf"
    config.write_text("[global]\nindex-url = http://index.example/simple\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    assert script.pip_index() == "http://index.example/simple"
    monkeypatch.setenv("PIP_INDEX_URL", "http://first.example/simple")
    assert script.pip_index() == "http://first.example/simple"


def test_another_index_installs_the_same_locked_packages(script: ModuleType, ran: Ran) -> None:
    """Exported from the lock, with hashes required, so another index cannot give other bytes."""
    script.sync_from_index("uv", "http://index.example/simple", {})
    assert any("uv export --frozen" in command for command in ran)
    assert any("--require-hashes" in command and "http://index.example/simple" in command for command in ran)


def test_a_failing_command_shows_its_last_words(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And where all of them are."""
    monkeypatch.setattr(script, "LOG", tmp_path / "log")
    with pytest.raises(script.SetupError, match=r"(?s)failed:.*no luck today.*log"):
        script.run(["sh", "-c", "echo no luck today; exit 3"])


def test_our_files_name_no_host() -> None:
    """Mirrors and indexes are those of the machine."""
    for path in (ROOT / "scripts/setup.sh", ROOT / "scripts/setup.py", ROOT / "Makefile"):
        assert "://" not in path.read_text()
