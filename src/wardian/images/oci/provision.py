"""What is laid over a foreign image so that sandboxes of it work as those of ``base`` do.

A user called ``user``, a bash, a sudo, names and addresses. Nothing of the image is run for that: its own
files are read, and changed files are written. What the image has already stays, unless it cannot work.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass

from wardian.images.base import BASE_FILES, ExtraFile
from wardian.images.oci.merge import MACHINES_OWN, Merged

USER, UID = "user", 1000
SUDO_GROUP, SUDO_GID = "sudo", 27
BUNDLES = ("etc/ssl/certs/ca-certificates.crt", "etc/pki/tls/certs/ca-bundle.crt", "etc/ssl/cert.pem")

PROFILE = b"""\
# The image's own PATH stays, as its maker set it: commands are run by a login shell.
: "${PATH:=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin}"
wardian_path=$PATH
for file in /etc/profile.d/*.sh; do
    if [ -r "$file" ]; then . "$file"; fi
done
PATH=$wardian_path
export PATH
unset file wardian_path
if [ -n "$PS1" ] && [ -r ~/.bashrc ]; then . ~/.bashrc; fi
"""

TAKEN_FROM_BASE = ("etc/hostname", "etc/hosts", "etc/resolv.conf", "etc/machine-id")


@dataclass(frozen=True, slots=True)
class Programs:
    """Static programs: a ``bash`` for images that have none, and our ``sudo``."""

    bash: bytes
    sudo: bytes


def provision(image: Merged, programs: Programs) -> Mapping[str, ExtraFile]:
    """The files to lay over ``image``, by path."""
    files: dict[str, ExtraFile] = {}
    for name in MACHINES_OWN:
        files[name] = ExtraFile(mode=0o1777 if name == "tmp" else 0o755)
    files["code"] = BASE_FILES["code"]
    files |= {path: BASE_FILES[path] for path in TAKEN_FROM_BASE}
    files["etc/profile"] = ExtraFile(PROFILE)
    if image.read("etc/nsswitch.conf") is None:
        files["etc/nsswitch.conf"] = ExtraFile(b"hosts: files dns\n")
    if not _is_there(image, "root"):
        files["root"] = ExtraFile(mode=0o700)
    if not _is_program(image, "bin/bash"):
        files["bin/bash"] = ExtraFile(programs.bash, mode=0o755)
    files["usr/bin/sudo"] = ExtraFile(programs.sudo, mode=0o755)  # no other can work: see guest/client/sudo.c
    files |= _accounts(image)
    return {_beside(image, path): file for path, file in files.items()}


def certificates(image: Merged) -> str:
    """Where the image has its certificate authorities; "" when it has none, and TLS then fails inside."""
    return next((path for path in BUNDLES if _is_there(image, path)), "")


def _beside(image: Merged, path: str) -> str:
    """``path`` with its directory resolved, but not its last part: a symlink there is replaced."""
    above, _, name = path.rpartition("/")
    return f"{image.resolve(above)[0]}/{name}" if above else name


def _is_there(image: Merged, path: str) -> bool:
    return image.resolve(path)[1] is not None


def _is_program(image: Merged, path: str) -> bool:
    _, inode = image.resolve(path)
    return inode is not None and stat.S_ISREG(inode.mode) and bool(inode.mode & 0o111)


def _accounts(image: Merged) -> Mapping[str, ExtraFile]:
    """The user, with a home and the right to use sudo."""
    passwd = _lines(image, "etc/passwd") or ["root:x:0:0:root:/root:/bin/bash"]
    group = _lines(image, "etc/group") or ["root:x:0:"]
    shadow = _lines(image, "etc/shadow")
    uids, gids = _numbers(passwd), _numbers(group)
    found = next((line.split(":") for line in passwd if line.startswith(f"{USER}:")), None)
    if found is not None and len(found) == 7 and found[2].isdigit() and found[3].isdigit():
        uid, gid, home = int(found[2]), int(found[3]), found[5].strip("/") or f"home/{USER}"
    else:
        uid, home = _free(UID, uids), f"home/{USER}"
        named = next((line.split(":") for line in group if line.startswith(f"{USER}:")), None)
        gid = int(named[2]) if named and len(named) > 2 and named[2].isdigit() else _free(uid, gids)
        if named is None:
            group.append(f"{USER}:x:{gid}:")
        passwd = [line for line in passwd if not line.startswith(f"{USER}:")]
        passwd.append(f"{USER}:x:{uid}:{gid}::/{home}:/bin/bash")
        if shadow:
            shadow.append(f"{USER}:!:19723:0:99999:7:::")
    group = _with_sudo(group, gids)
    files = {
        "etc/passwd": ExtraFile(_text(passwd)),
        "etc/group": ExtraFile(_text(group)),
    }
    if shadow:
        files["etc/shadow"] = ExtraFile(_text(shadow), mode=0o640)
    if not _is_there(image, home):
        files[home] = ExtraFile(mode=0o755, uid=uid, gid=gid)
        for name in (".bashrc", ".bash_profile"):
            content = BASE_FILES[f"home/user/{name}"].content
            files[f"{home}/{name}"] = ExtraFile(content, uid=uid, gid=gid)
    return files


def _with_sudo(group: list[str], gids: set[int]) -> list[str]:
    """The group that our sudo listens to, with the user in it."""
    lines = []
    for line in group:
        name, members = line.partition(":")[0], line.rpartition(":")[2]
        if name == SUDO_GROUP and USER not in members.split(","):
            line += f",{USER}" if members else USER
        lines.append(line)
    if not any(line.startswith(f"{SUDO_GROUP}:") for line in lines):
        lines.append(f"{SUDO_GROUP}:x:{_free(SUDO_GID, gids)}:{USER}")
    return lines


def _free(wanted: int, taken: set[int]) -> int:
    number = wanted
    while number in taken:
        number += 1
    taken.add(number)
    return number


def _numbers(lines: list[str]) -> set[int]:
    columns = (line.split(":") for line in lines)
    return {int(column[2]) for column in columns if len(column) > 2 and column[2].isdigit()}


def _lines(image: Merged, path: str) -> list[str]:
    return (image.read(path) or b"").decode(errors="surrogateescape").splitlines()


def _text(lines: list[str]) -> bytes:
    return "".join(line + "\n" for line in lines).encode(errors="surrogateescape")
