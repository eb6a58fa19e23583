# Run by mmdebstrap with the new root as $1, after all packages are installed. What it leaves must not depend on the
# day, the host or the order of things.
set -eu
root=$1

chroot "$root" useradd --create-home --uid 1000 --user-group --groups sudo --shell /bin/bash user
rm -f "$root"/home/user/.bash_logout "$root"/home/user/.profile "$root"/root/.profile
chmod -R a+rwX "$root/usr/local"

# A sandbox is single-use and its owner is root in it: nothing to protect from pip.
rm -f "$root"/usr/lib/python3*/EXTERNALLY-MANAGED

# Every command of the E2B SDK begins with `bash -l`, and inside a sandbox each page touched and each file opened costs
# tens of microseconds. A static bash does not load libraries; one archive replaces the thirteen files of the locale.
ln -f "$root/bin/bash-static" "$root/bin/bash"
chroot "$root" localedef --add-to-archive /usr/lib/locale/C.utf8

# The image gives every file one time of modification. Bytecode is only used when it was made for that very time,
# so it is made again here; without it each `python3` would compile what it imports.
find "$root/usr/lib/python3" "$root"/usr/lib/python3.* -name __pycache__ -prune -exec rm -rf {} +
find "$root/usr/lib/python3" "$root"/usr/lib/python3.* "$root/usr/share/python3" "$root"/etc/python3.* -name '*.py' \
    -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
chroot "$root" env PYTHONHASHSEED=0 python3 -m compileall -q --invalidation-mode timestamp \
    /usr/lib/python3 /usr/lib/python3.* >/dev/null || true

# Which packages were asked for and which came along depends on how the recipe was written, not on what is in it.
rm -f "$root"/var/lib/apt/extended_states

# No manual is in the image, but packages that are installed later (a JDK, PostgreSQL) link theirs: they fail where
# there is no directory to do it in.
for section in 1 2 3 4 5 6 7 8; do
    mkdir -p "$root/usr/share/man/man$section"
done

# Caches, logs and back-ups: made again when wanted, and different on every build.
rm -rf "$root"/var/cache/apt/* "$root"/var/cache/debconf/*-old "$root"/var/cache/ldconfig/* "$root"/var/lib/apt/lists/* \
    "$root"/var/log/* "$root"/var/lib/dpkg/*-old "$root"/etc/*- "$root"/usr/share/python3/__pycache__ \
    "$root"/usr/share/bash-completion "$root"/etc/profile.d/* "$root"/etc/bash.bashrc
mkdir -p "$root/var/cache/apt/archives/partial" "$root/var/lib/apt/lists/partial" "$root/var/log/apt"
