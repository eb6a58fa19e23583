"""What can be released, and what is kept of it."""

from __future__ import annotations

import io
import os
import random
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from wardian.model.errors import Invalid
from wardian.model.runner import Language, Runner
from wardian.runners.archive import pack, unpack
from wardian.runners.manifest import FILE, parse
from wardian.runners.store import ReleaseDamaged, ReleaseStore
from wardian.runners.tree import ENTRIES_MAX, FILE_BYTES_MAX, read_directory, tree_of

MANIFEST = (
    b'version = "1"\nlanguage = "python"\nstart = ["main.py"]\nself_test = ["main.py"]\nimports = ["main"]\n'
)


def write(root: Path, **more: bytes) -> Path:
    root.mkdir(exist_ok=True)
    for name, content in {FILE: MANIFEST, "main.py": b"pass\n", **more}.items():
        (root / name).write_bytes(content)
    return root


def test_equal_trees_have_one_digest_whenever_and_wherever_they_were_written(tmp_path: Path) -> None:
    one, other = write(tmp_path / "one"), write(tmp_path / "other")
    (other / "__pycache__").mkdir()
    (other / "__pycache__" / "main.cpython-311.pyc").write_bytes(b"poison")
    os.utime(other / "main.py", (1, 1))
    (other / "main.py").chmod(0o600)
    first = read_directory(one)
    assert read_directory(other).digest == first.digest
    assert unpack(pack(first)) == first
    changes: list[Callable[[], object]] = [
        lambda: (other / "main.py").write_bytes(b"pass \n"),
        lambda: (other / "main.py").chmod(0o755),
        lambda: (other / "empty").mkdir(),
        lambda: (other / "main.py").rename(other / "empty" / "main.py") and write(other),
    ]
    seen = {first.digest}
    for change in changes:
        change()
        seen.add(read_directory(other).digest)
    assert len(seen) == 1 + len(changes)


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        (MANIFEST + b"surprise = 1\n", "unknown_key", "surprise"),
        (MANIFEST.replace(b'"python"', b'"ruby"'), "bad_runner", "language"),
        (MANIFEST.replace(b'imports = ["main"]', b""), "bad_runner", "imports"),
        (MANIFEST.replace(b'"python"', b'"any"'), "bad_runner", "imports"),
        (MANIFEST.replace(b'version = "1"', b"version = 1"), "bad_runner", "version"),
        (MANIFEST.replace(b'version = "1"', b'version = "a b"'), "bad_runner", "version"),
        (MANIFEST + b"self_test_s = 61\n", "bad_runner", "self_test_s"),
        (MANIFEST + b'name = "No"\n', "bad_runner", "name"),
        (MANIFEST.replace(b"start", b"begin"), "unknown_key", "begin"),
        (MANIFEST.replace(b'start = ["main.py"]', b"start = []"), "bad_runner", "start"),
        (MANIFEST.replace(b'start = ["main.py"]', b'start = ["absent.py"]'), "bad_runner", "absent.py"),
        (MANIFEST.replace(b'start = ["main.py"]', b'start = ["../main.py"]'), "bad_runner", "../main.py"),
        (b"\xff", "bad_runner", FILE),
        (b"version = ", "bad_runner", FILE),
    ],
)
def test_a_manifest_is_understood_or_refused(tmp_path: Path, text: bytes, code: str, words: str) -> None:
    with pytest.raises(Invalid, match=words) as refused:
        read_directory(write(tmp_path / "runner", **{FILE: text}))
    assert refused.value.code == code


def set_user_id(path: Path) -> None:
    path.touch()
    path.chmod(0o4755)


def test_what_is_no_plain_file_is_not_released(tmp_path: Path) -> None:
    root = write(tmp_path / "runner")
    made: dict[str, Callable[[Path], object]] = {
        "link": lambda path: path.symlink_to("/etc/passwd"),
        "directory-link": lambda path: path.symlink_to("/etc"),
        "fifo": os.mkfifo,
        "device": lambda path: os.mknod(path, 0o020666, os.makedev(1, 3)),
        "setuid": set_user_id,
    }
    for name, make in made.items():
        make(root / name)
        with pytest.raises(Invalid) as refused:
            read_directory(root)
        assert refused.value.code == "bad_entry_kind", name
        (root / name).unlink()
    with pytest.raises(Invalid) as refused:
        tree_of({FILE: (False, MANIFEST), "main.py": (False, bytes(FILE_BYTES_MAX + 1))})
    assert refused.value.code == "runner_too_big"
    with pytest.raises(Invalid) as refused:
        tree_of({f"f{number}": (False, b"") for number in range(ENTRIES_MAX + 1)})
    assert refused.value.code == "runner_too_big"
    with pytest.raises(Invalid) as refused:
        read_directory(tmp_path / "absent")
    assert refused.value.code == "bad_runner"


def test_native_extensions_come_only_with_who_knows_where_they_load(tmp_path: Path) -> None:
    library = b"\x7fELF\x02\x01"
    for name in ("fast.so", "libfast.so.1.2", "fast.cpython-311-x86_64-linux-gnu.so", "fast.node"):
        root = write(tmp_path / name, **{name: library})
        with pytest.raises(Invalid, match=name) as refused:
            read_directory(root)
        assert refused.value.code == "native_extension"
        assert "native = true" in (refused.value.hint or "")
        (root / FILE).write_bytes(MANIFEST + b"native = true\n")
        packed = pack(read_directory(root))
        assert unpack(packed).manifest.native
    # Nor is everything one that is called so, or that a script could copy and run.
    read_directory(write(tmp_path / "others", **{"notes.so": b"text", "program": library, "so": library}))
    sent = member("fast.so")
    sent.size = len(library)
    with pytest.raises(Invalid) as refused:
        unpack(archive((sent, library)))
    assert refused.value.code == "native_extension"


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, content in ((FILE, MANIFEST), ("main.py", b"pass")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return made.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, *, mode: int = 0o644, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.linkname = kind, mode, link
    return info


@pytest.mark.parametrize(
    ("info", "code"),
    [
        (member("../out"), "bad_path"),
        (member("/etc/cron.d/x"), "bad_path"),
        (member("a/./b"), "bad_path"),
        (member("a//b"), "bad_path"),
        (member("a\nb"), "bad_path"),
        (member("x" * 256), "bad_path"),
        (member("/".join("abcdefgh" * 5)), "bad_path"),
        (member("main.py"), "bad_path"),
        (member("main.py/x"), "bad_path"),
        (member("l", tarfile.SYMTYPE, link="/etc/passwd"), "bad_entry_kind"),
        (member("l", tarfile.LNKTYPE, link="main.py"), "bad_entry_kind"),
        (member("d", tarfile.CHRTYPE), "bad_entry_kind"),
        (member("d", tarfile.BLKTYPE), "bad_entry_kind"),
        (member("p", tarfile.FIFOTYPE), "bad_entry_kind"),
        (member("s", mode=0o4755), "bad_entry_kind"),
        (member("s", mode=0o2755), "bad_entry_kind"),
    ],
)
def test_an_archive_holds_plain_files_or_is_refused(info: tarfile.TarInfo, code: str) -> None:
    with pytest.raises(Invalid) as refused:
        unpack(archive((info, b"")))
    assert refused.value.code == code


def test_whatever_an_archive_is_it_is_refused_in_words() -> None:
    good = archive()
    draw = random.Random(7)
    for _ in range(300):
        bad = bytearray(good)
        for _ in range(draw.randrange(1, 8)):
            bad[draw.randrange(len(bad))] = draw.randrange(256)
        cut = bytes(bad[: draw.randrange(len(bad))]) if draw.random() < 0.5 else bytes(bad)
        with suppress(Invalid):
            unpack(cut)
    for nothing in (b"", b"PK\3\4", good[:700]):
        with pytest.raises(Invalid):
            unpack(nothing)


def test_what_is_damaged_on_disk_is_not_given_to_anybody(tmp_path: Path) -> None:
    tree = read_directory(write(tmp_path / "runner", data=b"x" * 5000))
    store = ReleaseStore(tmp_path / "store")
    digest = store.keep(tree)
    assert store.keep(tree) == digest
    opened = store.open(digest)
    index = [entry.path for entry in opened.entries].index("data")
    assert opened.read(index, 4990, 100) == b"x" * 10
    assert opened.read(index, 10**12, 100) == b""
    changes: list[tuple[str, Callable[[bytes], bytes]]] = [
        ("content", lambda raw: raw[:-1] + b"y"),
        ("content", lambda raw: raw + b"y"),
        ("content", lambda raw: raw[:-1]),
        ("index.json", lambda raw: raw.replace(b"main.py", b"mair.py")),
        ("index.json", lambda raw: raw[:-1]),
    ]
    for name, change in changes:
        path = tmp_path / "store" / digest / name
        whole = path.read_bytes()
        path.write_bytes(change(whole))
        with pytest.raises(ReleaseDamaged):
            ReleaseStore(tmp_path / "store").open(digest)
        path.write_bytes(whole)
    assert ReleaseStore(tmp_path / "store").open(digest).entries == opened.entries
    with pytest.raises(ReleaseDamaged):
        store.open("0" * 64)


def test_a_canarys_share_is_about_what_was_said_and_the_same_for_a_run() -> None:
    runner = Runner("n1", "t", "r", current=1, created_at=0, canary=2, share=30)
    given = [runner.chosen_for(f"r{number}") for number in range(2000)]
    assert given == [runner.chosen_for(f"r{number}") for number in range(2000)]
    assert 500 < given.count(2) < 700
    assert parse(MANIFEST).language is Language.PYTHON
