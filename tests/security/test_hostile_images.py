"""Images come from strangers: nothing in them leads out, and none unpacks to more than is allowed."""

from __future__ import annotations

import json
import stat
import tarfile
from pathlib import Path

import pytest
from tests.images.oci_images import Blob, Content, image, layer, write_layout

from wardian.images import tar
from wardian.images.erofs import Image
from wardian.images.oci.config import ImageInvalid, read_config
from wardian.images.oci.layout import read_layout
from wardian.images.oci.merge import Merged
from wardian.images.oci.reference import parse
from wardian.images.tar import EXTENDED_MAX
from wardian.model.errors import Invalid, Unsupported

Files = dict[str, Content | tarfile.TarInfo]


def member(name: str, kind: bytes, *, link: str = "", size: int = 0, uid: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size, info.uid = kind, link, size, uid
    return info


def merged(tmp_path: Path, *layers: Files) -> dict[str, bytes | None]:
    """What is in the root image in the end: contents and targets; directories have none."""
    paths = []
    for number, files in enumerate(layers):
        paths.append(tmp_path / f"{number}.tar")
        paths[-1].write_bytes(layer(files))
    Merged(paths).write(tmp_path / "root")
    with Image(tmp_path / "root") as made:
        return {node.path: None if stat.S_ISDIR(node.mode) else made.read(node) for node in made.walk()}


@pytest.mark.parametrize("name", ["../escape", "a/../../escape", "x" * 300, "a/" * 3000 + "x"])
def test_no_name_leads_out(tmp_path: Path, name: str) -> None:
    with pytest.raises(ImageInvalid):
        merged(tmp_path, {name: b""})


def test_an_absolute_name_is_one_of_the_image(tmp_path: Path) -> None:
    assert merged(tmp_path, {"/etc/x": b""}) == {"/": None, "/etc": None, "/etc/x": b""}


@pytest.mark.parametrize("target", ["/etc", "../../../../etc", "/../etc"])
def test_a_symlink_is_followed_inside_only(tmp_path: Path, target: str) -> None:
    """What is written through it lands in the image's own directory, and nothing lies below a link."""
    found = merged(tmp_path, {"link": target}, {"link/cron.d/x": b"* * * * *"})
    assert (found["/etc/cron.d/x"], found["/link"]) == (b"* * * * *", target.encode())
    assert not [name for name in found if name.startswith("/link/")]


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageInvalid, match="too many symlinks"):
        merged(tmp_path, {"a": "b", "b": "a", "a/x": b""})


@pytest.mark.parametrize("link", ["/etc/shadow", "../../etc/shadow", "absent"])
def test_a_hard_link_has_to_lead_to_a_file_of_the_image(tmp_path: Path, link: str) -> None:
    with pytest.raises(ImageInvalid):
        merged(tmp_path, {"mine": member("mine", tarfile.LNKTYPE, link=link)})


def test_a_hard_link_survives_what_it_was_linked_to(tmp_path: Path) -> None:
    lower: Files = {"a": b"1", "b": member("b", tarfile.LNKTYPE, link="a")}
    assert merged(tmp_path, lower, {".wh.a": b""}) == {"/": None, "/b": b"1"}


def test_an_opaque_directory_hides_only_what_is_below(tmp_path: Path) -> None:
    found = merged(tmp_path, {"d/old": b""}, {"d/new": b"", "d/.wh..wh..opq": b""})
    assert list(found) == ["/", "/d", "/d/new"]


def test_devices_do_not_come_along(tmp_path: Path) -> None:
    kinds = (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
    files: Files = {f"etc/{number}": member(f"etc/{number}", kind) for number, kind in enumerate(kinds)}
    assert list(merged(tmp_path, {**files, "etc/x": b""})) == ["/", "/etc", "/etc/x"]


def test_nothing_can_lie_in_a_file(tmp_path: Path) -> None:
    with pytest.raises(ImageInvalid, match="is no directory"):
        merged(tmp_path, {"a": b"", "a/b": b""})


def test_a_header_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    header = member("././@LongLink", tarfile.GNUTYPE_LONGNAME, size=EXTENDED_MAX + 1)
    (tmp_path / "0.tar").write_bytes(header.tobuf(tarfile.GNU_FORMAT) + b"a" * (EXTENDED_MAX + 1024))
    with pytest.raises(ImageInvalid):
        Merged([tmp_path / "0.tar"])


def test_layers_have_so_many_entries_between_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar, "MEMBERS_MAX", 3)
    assert len(merged(tmp_path, {"a": b"", "b": b""}, {"a": b""})) == 3
    with pytest.raises(ImageInvalid, match="more than 3 entries"):
        merged(tmp_path, {"a": b"", "b": b""}, {"a": b"", "b": b""})


@pytest.mark.parametrize("packing", ["tar", "tar+gzip", "tar+zstd"])
def test_a_bomb_does_not_go_off(tmp_path: Path, packing: str) -> None:
    """Unpacking stops at the limit, whatever the archive says of itself."""
    layout = write_layout(tmp_path / "layout", image([layer({"zeros": b"\0" * 3_000_000})], packing=packing))
    with pytest.raises(ImageInvalid) as caught:
        read_layout(layout, tmp_path, plain_max=1_000_000)
    assert caught.value.code == "image_too_large"
    assert (tmp_path / "0.tar").stat().st_size <= 1_000_000


def test_a_layer_has_to_be_what_the_configuration_says(tmp_path: Path) -> None:
    """Two digests bind it: packed and plain."""
    manifest, blobs = image([layer({"a": b""})])
    document = json.loads(blobs[0].data)
    document["rootfs"]["diff_ids"] = [Blob(b"other", "").digest]
    config = Blob(json.dumps(document).encode(), blobs[0].media_type)
    changed = {**json.loads(manifest.data), "config": config.descriptor}
    made = Blob(json.dumps(changed).encode(), manifest.media_type), [config, *blobs[1:]]
    with pytest.raises(ImageInvalid, match="is not what its configuration says"):
        read_layout(write_layout(tmp_path / "layout", made), tmp_path)


def test_a_digest_is_no_path(tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "layout", image([layer({"a": b""})]))
    index = json.loads((layout / "index.json").read_text())
    index["manifests"][0]["digest"] = "sha256:../../index.json"
    (layout / "index.json").write_text(json.dumps(index))
    with pytest.raises(ImageInvalid, match="without a sha256 digest"):
        read_layout(layout, tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        {"Env": "PATH=/"},
        {"Env": [1]},
        {"Cmd": ["a\0b"]},
        {"ExposedPorts": {"99999/tcp": {}}},
        {"ExposedPorts": {"x": {}}},
        {"Healthcheck": {"Test": ["CMD", "x"], "Interval": "soon"}},
        {"Labels": []},
        "words",
    ],
)
def test_a_malformed_configuration_is_refused(config: object) -> None:
    _, (described, *_) = image([])
    document = json.loads(described.data)
    with pytest.raises(ImageInvalid):
        read_config({**document, "config": config})


@pytest.mark.parametrize(
    "text",
    ["", "UPPER/case", "a b", "--help", "oci:relative", "oci:/a:--tag", "docker://", "a@sha256:12", "x\n"],
)
def test_a_reference_that_is_none_is_refused(text: str) -> None:
    """Nothing of the kind is ever an argument of skopeo's."""
    with pytest.raises(Invalid):
        parse(text)


def test_other_places_of_images_are_refused() -> None:
    with pytest.raises(Unsupported, match="not taken from"):
        parse("containers-storage:x")


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("python:3.11", "docker://docker.io/library/python:3.11"),
        ("me/tool", "docker://docker.io/me/tool:latest"),
        ("docker://ghcr.io/a/b_c:1", "docker://ghcr.io/a/b_c:1"),
        ("localhost:5000/x", "docker://localhost:5000/x:latest"),
        ("debian@sha256:" + "a" * 64, "docker://docker.io/library/debian@sha256:" + "a" * 64),
        ("oci:/a/b:c", "oci:/a/b:c"),
    ],
)
def test_plain_names_mean_what_they_always_mean(text: str, full: str) -> None:
    assert str(parse(text)) == full
