"""A workflow: it drives a sandbox, asks a human, and survives whatever dies meanwhile.

$ wardian workflow serve report.py &
$ wardian run start report --input '{"rows": [3, 1, 2]}'
"""

import json

from wardian.workflows import run, step, workflow

SORT = "import json, pathlib; print(sorted(json.loads(pathlib.Path('rows.json').read_text())))"


@step(tries=3)
def check(rows: list[int]) -> int:
    """Done here, once: whatever it changes outside, it is not done again once it is committed."""
    return len(rows)


@workflow
def report(input: dict[str, list[int]]) -> dict[str, object]:
    """Sort rows in a sandbox, and publish them if somebody says so."""
    count = check(input["rows"])
    box = run.sandbox("base")
    done = box.run("python3 sort.py", files={"rows.json": json.dumps(input["rows"]), "sort.py": SORT})
    if run.ask(f"Publish {count} rows?") != "yes":
        return {"published": None}
    box.run("cp rows.json published.json")
    return {"published": json.loads(done.stdout), "kept": json.loads(box.read("published.json"))}
