#!/bin/sh
# Gets a Python to run scripts/setup.py with; on a fresh Debian that is one package. Everything else is in there.
set -eu
here=$(cd "$(dirname "$0")" && pwd)

new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

for python in python3 /usr/bin/python3 python3.13 python3.12 python3.11; do
    if new_enough "$python"; then
        exec "$python" "$here/setup.py" "$@"
    fi
done

if ! command -v apt-get >/dev/null; then
    echo "set-up needs Python 3.11 or newer, and this is not a Debian that could install it" >&2
    exit 1
fi
as_root=
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || { echo "set-up must install python3: run it as root once" >&2; exit 1; }
    as_root=sudo
fi
echo "· Python           installing python3"
install() {
    $as_root apt-get -qq update &&
        $as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends python3
}
said=$(install 2>&1) || { echo "$said" >&2; exit 1; }
new_enough /usr/bin/python3 || { echo "this Debian's Python is older than 3.11: Debian 12 or newer is needed" >&2; exit 1; }
exec /usr/bin/python3 "$here/setup.py" "$@"
