"""Inside: run a file of a release, with nothing of the environment's on the path but its standard library."""

import sys

root, library, script, *words = sys.argv[1:]
sys.path.insert(0, root)
sys.path.append(library)  # after the standard library, which nothing there may stand in for
sys.argv[:] = [f"{root}/{script}", *words]
main = sys.modules["__main__"] = type(sys)("__main__")
main.__file__ = sys.argv[0]
with open(sys.argv[0], "rb") as file:
    exec(compile(file.read(), sys.argv[0], "exec", dont_inherit=True), main.__dict__)
