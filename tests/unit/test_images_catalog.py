"""The image cache: built once, published whole, found again, and never believed blindly."""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from wardian.images import catalog as module
from wardian.images.base import ExtraFile, Recipe, Report, base_recipe, debian_recipe
from wardian.images.catalog import Catalog, base_image, default_cache, with_files
from wardian.images.erofs import Image
from wardian.model.errors import Conflict, Invalid, Unavailable

STATUS = "Package: tiny\nStatus: install ok installed\nVersion: 1.2-3\n\nPackage: other\nVersion: 4\n"
RECIPE = Recipe(
    name="tiny", suite="bookworm", packages=("tiny",), customise="", files={"etc/motd": ExtraFile(b"hello\n")}
)


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands in for mmdebstrap with a package layer of one file, and counts its runs."""
    runs: list[str] = []

    def build(recipe: Recipe, out: Path, report: Report) -> dict[str, str]:
        runs.append(recipe.name)
        with tarfile.open(out, "w") as tar:
            for name, content in (
                ("./var/lib/dpkg/status", STATUS),
                ("./etc/motd", "old\n"),
                ("./dev/null", ""),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content.encode()))
        return {"tiny": "sha256:" + "1" * 64}

    monkeypatch.setattr(module, "build_packages", build)
    return runs


def test_an_image_is_built_once(tmp_path: Path, builds: list[str]) -> None:
    """The second time it is found; its manifest says what is in it."""
    catalog = Catalog(tmp_path)
    assert catalog.find(RECIPE) is None
    built = catalog.build(RECIPE)
    assert catalog.build(RECIPE) == built == catalog.find(RECIPE)
    assert builds == ["tiny"]
    assert built.manifest.packages == {"tiny": "1.2-3", "other": "4"}
    assert built.manifest.archives == {"tiny": "sha256:" + "1" * 64}
    assert built.root.digest == built.manifest.digest
    assert built.root.path.parent.name == built.manifest.digest.removeprefix("sha256:")
    assert not list(tmp_path.glob("building-*"))


def test_two_keys_that_come_to_the_same_files_keep_what_each_says(tmp_path: Path, builds: list[str]) -> None:
    """As two container images do that are run in different ways."""
    catalog = Catalog(tmp_path)
    digests = set()
    for name in ("one", "other"):
        built = catalog.build(replace(RECIPE, name=name, packages=("tiny", name)))
        digests.add(built.root.digest)
    assert len(digests) == 1
    found = [catalog.find(replace(RECIPE, name=name, packages=("tiny", name))) for name in ("one", "other")]
    assert [each.manifest.name for each in found if each] == ["one", "other"]
    assert catalog.prune([]) == sorted(digests)
    assert list(tmp_path.glob("recipes/*")) == []


def test_extra_files_are_laid_over_the_packages(tmp_path: Path, builds: list[str]) -> None:
    """They replace what packages brought; /dev is left to the machine; owners and links are kept."""
    files = {"/opt/x": ExtraFile(b"x", mode=0o751, uid=7, gid=8), "opt/y": ExtraFile(link="x")}
    image = Catalog(tmp_path).build(with_files(RECIPE, files))
    with Image(image.root.path) as content:
        nodes = {node.path: node for node in content.walk()}
        assert content.read(nodes["/etc/motd"]) == b"hello\n"
        assert content.read(nodes["/opt/y"]) == b"x"
        assert (nodes["/opt/x"].mode & 0o7777, nodes["/opt/x"].uid, nodes["/opt/x"].gid) == (0o751, 7, 8)
    assert "/dev/null" not in nodes


def test_another_file_needs_no_other_packages(tmp_path: Path, builds: list[str]) -> None:
    """The slow layer is shared; the images differ."""
    catalog = Catalog(tmp_path)
    one = catalog.build(RECIPE)
    two = catalog.build(with_files(RECIPE, {"etc/more": ExtraFile(b"")}))
    assert builds == ["tiny"]
    assert one.root.digest != two.root.digest
    assert one.manifest.tree != two.manifest.tree


def test_the_same_recipe_gives_the_same_digest_elsewhere(tmp_path: Path, builds: list[str]) -> None:
    """Two caches, two builds, one digest."""
    assert len({Catalog(tmp_path / name).build(RECIPE).root.digest for name in ("a", "b")}) == 1
    assert builds == ["tiny", "tiny"]


def test_what_a_killed_build_left_is_removed(tmp_path: Path, builds: list[str]) -> None:
    """And it is never taken for an image."""
    (tmp_path / "building-dead/tree").mkdir(parents=True)
    Catalog(tmp_path).build(RECIPE)
    assert not (tmp_path / "building-dead").exists()


def test_a_shortened_image_is_not_found(tmp_path: Path, builds: list[str]) -> None:
    """A full disk or a crash of the host must not give half an image; building again repairs it."""
    catalog = Catalog(tmp_path)
    path = catalog.build(RECIPE).root.path
    path.write_bytes(path.read_bytes()[:-1])
    assert catalog.find(RECIPE) is None
    catalog.verify(catalog.build(RECIPE))


def test_a_damaged_image_is_told(tmp_path: Path, builds: list[str]) -> None:
    """Verification reads every byte."""
    catalog = Catalog(tmp_path)
    image = catalog.build(RECIPE)
    catalog.verify(image)
    content = bytearray(image.root.path.read_bytes())
    content[-1] ^= 1
    image.root.path.write_bytes(content)
    with pytest.raises(Conflict, match="is damaged"):
        catalog.verify(image)


def test_pruning_keeps_what_is_named_and_its_layer(tmp_path: Path, builds: list[str]) -> None:
    """Others go, with the names that led to them; an open or linked image stays with who has it."""
    catalog = Catalog(tmp_path)
    kept = catalog.build(RECIPE)
    gone = catalog.build(with_files(RECIPE, {"etc/more": ExtraFile(b"")}))
    other = catalog.build(replace(RECIPE, packages=("tiny", "other"), files={"etc/x": ExtraFile(b"x")}))
    assert len(list((tmp_path / "packages").glob("*.tar"))) == 2
    linked = tmp_path / "linked"
    linked.hardlink_to(gone.root.path)
    assert set(catalog.prune({kept.root.digest})) == {gone.root.digest, other.root.digest}
    assert catalog.find(RECIPE) == kept
    assert not gone.root.path.exists()
    assert linked.stat().st_size == gone.manifest.size_bytes
    assert {path.stem for path in (tmp_path / "recipes").iterdir()} == {RECIPE.key}
    assert [path.stem for path in (tmp_path / "packages").glob("*.tar")] == [RECIPE.packages_key]
    assert catalog.prune({kept.root.digest}) == []


def test_the_base_image_is_never_pruned(tmp_path: Path, builds: list[str]) -> None:
    """No server starts without it."""
    base = Catalog(tmp_path).build(base_recipe())
    assert Catalog(tmp_path).prune(()) == []
    assert base_image(tmp_path) == base


@pytest.mark.parametrize(
    "package", ["Upper", "--option", "a b", "tree=;x", "tree=", "x/unstable", "./file.deb"]
)
def test_what_can_be_no_package_is_refused(package: str) -> None:
    """Before anything is run with it."""
    with pytest.raises(Invalid, match="is no Debian package"):
        debian_recipe("x", "bookworm", [package])
    with pytest.raises(Invalid, match="is no Debian suite"):
        debian_recipe("x", f"--{package}", [])


def test_a_pin_stands_for_its_name() -> None:
    """A package is asked for once, in the one version that is wanted; two are an error."""
    recipe = debian_recipe("x", "bookworm", ["git=1:2.39", "git", "tree"])
    assert [each for each in recipe.packages if each.startswith(("git", "tree"))] == ["git=1:2.39", "tree"]
    assert debian_recipe("base", "bookworm").key == base_recipe().key
    with pytest.raises(Invalid, match="is asked for as 1 and as 2"):
        debian_recipe("x", "bookworm", ["git=1", "git=2"])


def test_a_missing_base_image_says_how_to_get_it(tmp_path: Path) -> None:
    """The hint is the command."""
    with pytest.raises(Unavailable, match="wardian template build base"):
        base_image(tmp_path)


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """WARDIAN_CACHE comes first."""
    monkeypatch.setenv("WARDIAN_CACHE", str(tmp_path))
    assert default_cache() == tmp_path


def test_every_part_of_a_recipe_is_in_its_key() -> None:
    """Whatever changes what is built changes the key; only packages and script change the layer's."""
    base = base_recipe()
    assert base.key == base_recipe().key
    more = with_files(base, {"etc/x": ExtraFile(b"")})
    assert more.key != base.key
    assert more.packages_key == base.packages_key
    assert with_files(base, {"etc/x": ExtraFile(b"", mode=0o600)}).key != more.key
