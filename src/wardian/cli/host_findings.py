"""What ``wardian doctor`` says about programs of the host, and about where images and packages come from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from wardian.cli.finding import Finding
from wardian.cli.requirements import PACKAGES, Need, Package, remedy
from wardian.images import debian
from wardian.images.base import SUITE, host_codename
from wardian.images.indexes import Indexes, host_indexes

REGISTRIES = (Path("/etc/containers/registries.conf"), Path("/etc/containers/registries.conf.d"))
DEFAULT_PIP, DEFAULT_NPM = "https://pypi.org/simple", "https://registry.npmjs.org"


def program_findings() -> Iterator[Finding]:
    """One for each package that sandboxes and images want, one for each purpose that only developers have."""
    for need in (Need.SANDBOXES, Need.MICROVMS, Need.IMAGES):
        for name, package in _packages(need).items():
            yield _one(name, package)
    for need in (Need.COMPILING, Need.TESTS, Need.BENCHMARKS):
        yield _together(need)


def source_findings() -> Iterator[Finding]:
    """Where builds get Debian, packages of languages and images from. Nothing secret is told."""
    yield _debian()
    yield _indexes(host_indexes())
    yield _registries()


def _packages(need: Need) -> dict[str, Package]:
    return {name: package for name, package in PACKAGES.items() if package.need is need}


def _one(name: str, package: Package) -> Finding:
    if found := package.found():
        return Finding(name, "ok", found)
    level = "missing" if package.need is Need.SANDBOXES else "warning"
    return Finding(name, level, f"not installed: it is for {package.why}", remedy(name))


def _together(need: Need) -> Finding:
    packages = _packages(need)
    missing = [name for name, package in packages.items() if not package.found()]
    title = f"to {need}"
    if not missing:
        return Finding(title, "ok", ", ".join(packages))
    said = ", ".join(f"{name} ({PACKAGES[name].why})" for name in missing)
    return Finding(title, "warning", f"not installed: {said}; sandboxes do without", remedy(*missing))


def _debian() -> Finding:
    release = debian.archive(debian.host_sources(), SUITE, host_codename())
    if release:
        return Finding("debian", "ok", f"{SUITE} from {_shown(release[0].uri)}, as apt is told")
    return Finding(
        "debian",
        "warning",
        f"/etc/apt names no Debian {SUITE}: `base` and other Debian bases cannot be built",
        f"add /etc/apt/sources.list.d/debian.sources with suite {SUITE}, from a mirror you trust",
    )


def _indexes(indexes: Indexes) -> Finding:
    pip = indexes.env.get("PIP_INDEX_URL", DEFAULT_PIP)
    npm = indexes.env.get("NPM_CONFIG_REGISTRY", DEFAULT_NPM)
    proxy = indexes.env.get("https_proxy")
    through = f", through {_shown(proxy)}" if proxy else ""
    return Finding("package indexes", "ok", f"pip {_shown(pip)}, npm {_shown(npm)}{through}: as on this host")


def _registries() -> Finding:
    told = [str(path) for path in REGISTRIES if path.is_file() or (path.is_dir() and any(path.iterdir()))]
    how = f"as {' and '.join(told)} say" if told else "directly: /etc/containers names no mirrors"
    return Finding("registries", "ok", f"OCI images come from registries {how}")


def _shown(url: str) -> str:
    """A URL without its user and password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
