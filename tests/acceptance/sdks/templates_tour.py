"""Drives the template API of one official Python SDK: ``templates_tour.py <module> <prefix> <registry>``.

Ends with one line of JSON: for each step ``ok``, or ``lacks`` where this release has no such call. Any
failure is an exception. Templates are called ``<prefix>-…``; ``registry`` (``host:port``) has
``team/tool:1.0`` for whoever knows the password.
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FILES = {
    "note.txt": "a note\n",
    "app/main.txt": "main\n",
    "app/sub/deep.txt": "deep\n",
    "app/secret.key": "no\n",
    ".dockerignore": "**/*.key\n",
}


@contextmanager
def context() -> Iterator[str]:
    """A directory to copy from."""
    with tempfile.TemporaryDirectory() as directory:
        for name, text in FILES.items():
            (Path(directory) / name).parent.mkdir(parents=True, exist_ok=True)
            (Path(directory) / name).write_text(text)
        yield directory


class Tour:
    """One SDK, and the names its templates have."""

    def __init__(self, module_name: str, prefix: str, registry: str) -> None:
        self.sdk: Any = importlib.import_module(module_name)
        self.template: Any = self.sdk.Template
        self.prefix, self.registry = prefix, registry
        self.has_names = "name" in inspect.signature(self.template.build).parameters

    def name(self, what: str) -> str:
        return f"{self.prefix}-{what}"

    def named(self, what: str, tag: str = "") -> dict[str, str]:
        """The arguments that name a build: early releases have aliases, and no tags."""
        return {"name": self.name(what) + tag} if self.has_names else {"alias": self.name(what)}

    def exception(self, name: str) -> Any:
        return getattr(importlib.import_module(f"{self.sdk.__name__}.exceptions"), name)

    @contextmanager
    def sandbox(self, reference: str) -> Iterator[Any]:
        made = self.sdk.Sandbox.create(reference, timeout=120)
        try:
            yield made
        finally:
            made.kill()


def upon_an_image(tour: Tour) -> None:
    """Every kind of step, on an image of a registry; the log as it comes."""
    lines: list[str] = []
    with context() as directory:
        template = (
            tour.template(file_context_path=directory)
            .from_python_image("3")
            .set_envs({"WHO": "world", "GREETING": "hello"})
            .copy("note.txt", "/srv/note.txt")
            .copy_items([{"src": "app", "dest": "app", "user": "root", "mode": 0o750}])
            .set_user("root")
            .make_dir("/made", mode=0o711)
            .rename("/srv/note.txt", "/srv/renamed.txt")
            .make_symlink("/srv/renamed.txt", "/made/link")
            .remove("/home/user/app/sub", recursive=True)
            .set_user("user")
            .run_cmd(["echo $GREETING $WHO > said", "id -un >> said"])
            .run_cmd("id -un > /by-root", user="root")
            .set_workdir("/home/user/work")
        )
        tags = {"tags": ["stable"]} if tour.has_names else {}
        info = tour.template.build(
            template,
            **tour.named("image", ":v1"),
            **tags,
            cpu_count=1,
            memory_mb=512,
            on_build_logs=lambda entry: lines.append(entry.message),
        )
    assert any("RUN echo $GREETING" in line for line in lines), lines
    assert any("Uploaded 'app'" in line for line in lines), lines
    with tour.sandbox(tour.name("image") + (":stable" if tour.has_names else "")) as sandbox:
        run = sandbox.commands.run
        assert run("cat ../said /by-root").stdout.split() == ["hello", "world", "user", "root"]
        said = run("echo $GREETING $PYTHON_VERSION; pwd").stdout.split()
        assert said == ["hello", "3", "/home/user/work"], said
        assert run("cat /made/link; ls -A /home/user/app", user="root").stdout == "a note\nmain.txt\n"
        owners = run("stat -c '%U %a' /made /home/user/app/main.txt /srv/renamed.txt", user="root").stdout
        assert owners.splitlines() == ["root 711", "root 750", "user 644"]
        told = sandbox.get_info()
        assert (told.cpu_count, told.memory_mb, told.template_id) == (1, 512, info.template_id)


def upon_base(tour: Tour) -> None:
    """In the background, and with something that runs already."""
    template = (
        tour.template()
        .from_base_image()
        .pip_install("six==1.17.0")
        .set_start_cmd("python3 -m http.server 8000 --directory /etc", tour.sdk.wait_for_port(8000))
    )
    info = tour.template.build_in_background(template, **tour.named("base"))
    status = tour.template.get_build_status(info)
    assert status.status in ("building", "waiting"), status
    lines: list[str] = []
    while status.status in ("building", "waiting"):
        lines += [entry.message for entry in status.log_entries]
        status = tour.template.get_build_status(info, logs_offset=len(lines))
        time.sleep(0.1)
    assert status.status == "ready", status
    assert any("pip install" in line for line in lines), lines
    with tour.sandbox(tour.name("base")) as sandbox:
        assert "root:x:0:0" in sandbox.commands.run("curl -s localhost:8000/passwd").stdout
        assert sandbox.commands.run("python3 -c 'import six; print(six.__version__)'").stdout == "1.17.0\n"


def with_credentials(tour: Tour) -> None:
    """An image of a registry that wants a password."""
    image = f"{tour.registry}/team/tool:1.0"
    template = tour.template().from_image(image, username="me", password="secret-word").run_cmd("true")
    tour.template.build(template, **tour.named("private"))
    wrong = tour.template().from_image(image, username="me", password="wrong-word").run_cmd("true")
    message = _failure(tour, wrong, "private")
    assert "cannot be fetched" in message, message
    assert "wrong-word" not in message


def from_a_dockerfile(tour: Tour) -> None:
    template = tour.template().from_dockerfile(
        "FROM python:3\nENV A=1\nUSER root\nRUN echo made > /made\nUSER user\nWORKDIR /srv\n"
    )
    tour.template.build(template, **tour.named("dockerfile"))
    with tour.sandbox(tour.name("dockerfile")) as sandbox:
        assert sandbox.commands.run("cat /made; echo $A; pwd").stdout.split() == ["made", "1", "/srv"]


def that_fails(tour: Tour) -> None:
    """The reason, and the line of the program that asked for it; the template before it stays."""
    template = (
        tour.template()
        .from_template(tour.name("dockerfile"))
        .set_envs({"A": "1", "B": "2"})
        .run_cmd("true")
        .run_cmd("echo why >&2; exit 3")
        .run_cmd("echo never")
    )
    message = _failure(tour, template, "dockerfile", asked_at='.run_cmd("echo why >&2; exit 3")')
    assert "failed to run command 'echo why >&2; exit 3': exit status 3" in message, message
    unknown = tour.template().from_template(f"{tour.prefix}-absent").run_cmd("true")
    assert "absent" in _failure(tour, unknown, "dockerfile")
    with tour.sandbox(tour.name("dockerfile")) as sandbox:
        assert sandbox.files.exists("/made")


def _failure(tour: Tour, template: Any, what: str, asked_at: str = "") -> str:
    """What building it says, which must fail; ``asked_at`` is the line that the traceback leads to."""
    try:
        tour.template.build(template, **tour.named(what))
    except tour.exception("BuildException") as error:
        lines = [frame.line or "" for frame in traceback.extract_tb(error.__traceback__)]
        assert not asked_at or asked_at in lines, lines
        return str(error)
    raise AssertionError("it was built")


def again_from_the_cache(tour: Tour) -> None:
    """Unless the cache is passed by."""

    def built(template: Any, **more: Any) -> list[str]:
        lines: list[str] = []
        tour.template.build(
            template, **tour.named("cached"), on_build_logs=lambda entry: lines.append(entry.message), **more
        )
        return [line for line in lines if "RUN date" in line]

    def template() -> Any:
        command = f"date +%N > /home/user/now; echo {tour.prefix}"
        return tour.template().from_python_image().run_cmd(command)

    assert not built(template())[0].startswith("CACHED")
    assert built(template())[0].startswith("CACHED")
    assert not built(template(), skip_cache=True)[0].startswith("CACHED")


def names(tour: Tour) -> None:
    assert tour.template.exists(tour.name("base")) is True
    assert tour.template.exists(tour.name("never")) is False


def aliases(tour: Tour) -> None:
    assert tour.template.alias_exists(tour.name("base")) is True
    assert tour.template.alias_exists(tour.name("never")) is False


def tags(tour: Tour) -> None:
    name = tour.name("image")
    given = tour.template.assign_tags(f"{name}:v1", ["production", "v1.0"])
    assert sorted(given.tags) == ["production", "v1.0"]
    assert tour.template.assign_tags(f"{name}:stable", "single").build_id == given.build_id
    known = {each.tag: each.build_id for each in tour.template.get_tags(name)}
    assert known == dict.fromkeys(["production", "single", "stable", "v1", "v1.0"], given.build_id)
    assert len(tour.template.get_tags(f"default/{name}")) == 5
    tour.template.remove_tags(name, ["single", "v1.0"])
    tour.template.remove_tags(name, "production")
    assert {each.tag for each in tour.template.get_tags(name)} == {"stable", "v1"}
    try:
        tour.template.remove_tags(name, "single")
    except tour.exception("TemplateException") as error:
        if "has no tag" not in str(error):
            raise
    else:
        raise AssertionError("a tag that is gone was removed again")


STEPS: list[tuple[Callable[[Tour], None], str]] = [
    (upon_an_image, "build"),
    (upon_base, "build_in_background"),
    (with_credentials, "build"),
    (from_a_dockerfile, "build"),
    (that_fails, "build"),
    (again_from_the_cache, "build"),
    (names, "exists"),
    (aliases, "alias_exists"),
    (tags, "get_tags"),
]


def main(module_name: str, prefix: str, registry: str) -> None:
    tour = Tour(module_name, prefix, registry)
    outcome = {}
    for take, needs in STEPS:
        name = take.__name__.replace("_", " ")
        outcome[name] = "ok" if hasattr(tour.template, needs) else "lacks"
        if outcome[name] == "ok":
            take(tour)
    print(json.dumps(outcome))  # noqa: T201 - the answer


if __name__ == "__main__":
    main(*sys.argv[1:])
