"""Inside: look a release over as it is seen here, then run its self-test. Answers on standard output, in one
line: the digest of the tree, the challenge, and what runs it.

Every file is read once: what was hashed is what is compiled, imported and run. Little is imported: it takes
time.
"""

import os
import sys

try:
    from _sha2 import sha256
except ImportError:
    try:
        from _sha256 import sha256
    except ImportError:
        from hashlib import sha256

root, library, count, *words = sys.argv[1:]
names, command = words[: int(count)], words[int(count) :]
answer = os.dup(1)
os.dup2(2, 1)  # what modules print as they load is no answer


def read(path):
    file = os.open(path, os.O_RDONLY)
    status, pieces, left = os.fstat(file), [], True
    size = status.st_size
    while size and left:
        left = os.read(file, size)
        pieces.append(left)
        size -= len(left)
    os.close(file)
    return status.st_mode, b"".join(pieces)


code, lines = {}, []
for place, directories, files in os.walk(root):
    for name in directories:
        path = f"{place}/{name}"
        shown = path[len(root) + 1 :]
        lines.append((os.fsencode(shown), f"{os.lstat(path).st_mode:o} 0 - {shown}\n"))
    for name in files:
        path = f"{place}/{name}"
        shown = path[len(root) + 1 :]
        mode, content = read(path)
        if name.endswith(".py"):
            code[shown[:-3]] = compile(content, path, "exec", dont_inherit=True)
        digest = sha256(content).hexdigest()
        lines.append((os.fsencode(shown), f"{mode:o} {len(content)} {digest} {shown}\n"))
digest = sha256("".join(line for _, line in sorted(lines)).encode()).hexdigest()
challenge = read(os.path.dirname(root) + "/challenge")[1].decode()


class Release:
    """Finds and loads modules of the release, from what was read."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        found = name.replace(".", "/")
        package = f"{found}/__init__" in code
        if not package and found not in code:
            return None
        origin = f"{root}/{found}/__init__.py" if package else f"{root}/{found}.py"
        spec = type(sys.__spec__)(name, Release, origin=origin, is_package=package)
        spec.has_location = True
        if package:
            spec.submodule_search_locations = [f"{root}/{found}"]
        return spec

    @staticmethod
    def create_module(spec):
        return None

    @staticmethod
    def exec_module(module):
        exec(code[module.__spec__.origin[len(root) + 1 : -3]], module.__dict__)


sys.meta_path.insert(0, Release)
sys.path += [root, library]
for name in names:
    __import__(name)
    origin = getattr(sys.modules[name], "__file__", None) or ""
    if not origin.startswith(root + "/"):
        raise ImportError(f"{name} comes from {origin}, not from the release")
os.write(answer, f"{digest} {challenge} python-{sys.version.split()[0]}\n".encode())
os.close(answer)
sys.argv[:] = [f"{root}/{command[0]}", *command[1:]]
main = sys.modules["__main__"] = type(sys)("__main__")
main.__file__ = sys.argv[0]
script = command[0].removesuffix(".py") if command[0].endswith(".py") else ""
if script not in code:
    code[script] = compile(read(sys.argv[0])[1], sys.argv[0], "exec", dont_inherit=True)
exec(code[script], main.__dict__)
