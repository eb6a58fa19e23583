"""Instructions to a Plan: one method per instruction. What is not understood is refused, with its line."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NoReturn

from wardian.builds.dockerfile.bases import BadBase, base_of
from wardian.builds.dockerfile.lines import Instruction, Source, read_lines
from wardian.builds.dockerfile.scope import PLATFORM, Scope
from wardian.builds.dockerfile.words import BadWords, json_form, split_flags, split_pair, split_words
from wardian.builds.errors import BadManifest
from wardian.builds.expand import NAME, BadExpansion
from wardian.builds.packing import Files, Packed, Unpackable
from wardian.model.build import KEPT, Base, BaseKind, Plan, Stage, Step, StepKind

SHELL = ("/bin/sh", "-c")
HEALTH_FLAGS = frozenset({"interval", "timeout", "start-period", "start-interval", "retries"})
REFUSED: Mapping[str, str] = {
    "VOLUME": "give volumes to the sandbox when it is created",
    "ONBUILD": "write the instruction into the Dockerfile that is to carry it out",
    "STOPSIGNAL": "a sandbox is ended whole; leave it out",
}
"""Instructions of Docker's that mean nothing here, and what to do instead."""

_STAGE_NAME = re.compile(r"[a-z][a-z0-9_.-]*")
_PORT = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp))?")
_PORTS_MAX = 64
_URL = re.compile(r"(?:https?://|ftp://|git@|git://|ssh://)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Config:
    """What a stage's image says of its processes, as far as it has been said. A later FROM of it inherits."""

    shell: tuple[str, ...] = SHELL
    cmd: tuple[str, ...] | str | None = None
    entrypoint: tuple[str, ...] | str | None = None
    ready: str | None = None
    ports: tuple[int, ...] = ()
    user: bool = False
    workdir: bool = False


@dataclass(slots=True)
class _Draft:
    """A stage being written."""

    name: str
    base: Base
    scope: Scope
    config: Config
    steps: list[Step] = field(default_factory=list)


def read_dockerfile(
    text: str,
    files: Files,
    *,
    arguments: Mapping[str, str] | None = None,
    is_template: Callable[[str], bool] = lambda name: False,
    file: str = "Dockerfile",
) -> tuple[Plan, Sequence[str]]:
    """The plan of a Dockerfile, and remarks on what it says in vain.

    ``arguments`` are values for its ARGs. Raises :class:`BadManifest`.
    """
    return _Planner(read_lines(text, file), files, dict(arguments or {}), is_template, file).plan()


class _Planner:
    def __init__(
        self,
        source: Source,
        files: Files,
        arguments: dict[str, str],
        is_template: Callable[[str], bool],
        file: str,
    ) -> None:
        self._source, self._files, self._file = source, files, file
        self._arguments, self._is_template = arguments, is_template
        self._used_arguments: set[str] = set()
        self._global = Scope(source.escape, bare=True)
        self._drafts: list[_Draft] = []
        self._remarks: list[str] = []
        self._at = Instruction("", "", 0)

    def plan(self) -> tuple[Plan, Sequence[str]]:
        for instruction in self._source.instructions:
            self._at = instruction
            try:
                self._take(instruction)
            except (BadWords, BadExpansion, BadBase) as error:
                self._refuse(str(error))
            except Unpackable as error:
                self._refuse(error.message, hint=error.hint)
        if not self._named_drafts():
            raise BadManifest("there is no FROM", file=self._file, hint="begin with FROM base")
        unused = sorted(set(self._arguments) - self._used_arguments)
        if unused:
            raise BadManifest(
                f"no ARG is called {', '.join(unused)}", file=self._file, hint="declare it with ARG"
            )
        return self._finished(), self._remarks

    def _named_drafts(self) -> Sequence[_Draft]:
        return [draft for draft in self._drafts if not draft.name.startswith("image:")]

    def _finished(self) -> Plan:
        last = self._drafts[-1]
        config = last.config
        if not config.user:
            last.steps.append(Step(StepKind.USER, ("user",), text="USER user (where none is set)"))
        if not config.workdir:
            last.steps.append(
                Step(StepKind.WORKDIR, ("/home/user",), text="WORKDIR /home/user (as none is set)")
            )
        stages = tuple(Stage(draft.name, draft.base, tuple(draft.steps)) for draft in self._drafts)
        return Plan(stages, start=_start(config), ready=config.ready, ports=config.ports)

    # ── dispatch

    def _take(self, instruction: Instruction) -> None:
        keyword = instruction.keyword
        if keyword in REFUSED:
            self._refuse(f"{keyword} is not supported", hint=REFUSED[keyword])
        handler = _HANDLERS.get(keyword)
        if handler is None:
            near = difflib.get_close_matches(keyword, _HANDLERS, 1)
            self._refuse(f"unknown instruction {keyword}", hint=f"is {near[0]} meant?" if near else None)
        if not instruction.rest:
            self._refuse(f"{keyword} says nothing")
        if not self._drafts and keyword not in ("FROM", "ARG"):
            self._refuse(f"{keyword} before the first FROM")
        handler(self, instruction)

    def _refuse(self, message: str, *, hint: str | None = None) -> NoReturn:
        at = self._at
        raise BadManifest(message, file=self._file, line=at.line, text=at.text, hint=hint)

    @property
    def _draft(self) -> _Draft:
        return self._drafts[-1]

    def _configure(self, **changes: object) -> None:
        self._draft.config = replace(self._draft.config, **changes)  # type: ignore[arg-type]

    def _step(self, kind: StepKind, *args: str, files: str = "", expand: bool = False) -> None:
        at = self._at
        self._draft.steps.append(Step(kind, args, at.line, at.text, files=files, expand=expand))

    def _no_flags(self, rest: str) -> str:
        flags, rest = split_flags(rest)
        if flags:
            self._refuse(f"--{flags[0][0]} is not supported with {self._at.keyword}")
        return rest

    def _known(self, word: str, scope: Scope | None = None) -> str:
        found = (scope or self._draft.scope).now(word)
        if found is None:
            self._refuse(
                f"{word!r} has a variable that no ARG or ENV before it sets",
                hint="a variable of the base image cannot be used here; set it with ARG or ENV",
            )
        return found

    # ── stages and arguments

    def _from(self, instruction: Instruction) -> None:
        flags, rest = split_flags(instruction.rest)
        for flag, value in flags:
            if (
                flag != "platform"
                or self._known(value or "", self._with_platform()) != PLATFORM["TARGETPLATFORM"]
            ):
                self._refuse(f"--{flag}={value} is not supported", hint="images here are linux/amd64")
        words = split_words(rest, self._source.escape)
        if len(words) not in (1, 3) or (len(words) == 3 and words[1].lower() != "as"):
            self._refuse("FROM takes a name, and perhaps AS and another name")
        name = self._known(words[0], self._global)
        if not name:
            self._refuse(
                "FROM of an empty name: an ARG before it has no value", hint="give it with --build-arg"
            )
        called = words[2].lower() if len(words) == 3 else str(len(self._named_drafts()))
        if len(words) == 3 and not _STAGE_NAME.fullmatch(called):
            self._refuse(f"{words[2]!r} cannot be the name of a stage")
        if self._stage(called) is not None:
            self._refuse(f"two stages are called {called!r}")
        self._begin(called, name)

    def _with_platform(self) -> Scope:
        return replace(self._global, args={**PLATFORM, **self._global.args})

    def _begin(self, called: str, name: str) -> None:
        below = self._stage(name.lower())
        scope = Scope(self._source.escape)
        if below is not None:
            scope.env = dict(below.scope.env)
            base = Base(BaseKind.STAGE, below.name)
            self._drafts.append(_Draft(called, base, scope, below.config))
            return
        draft = _Draft(called, base_of(name, self._is_template), scope, Config())
        if draft.base.kind is not BaseKind.IMAGE:  # an image says itself who and where its steps are
            draft.steps.append(Step(StepKind.USER, ("root",), text="USER root (as every Dockerfile begins)"))
            draft.steps.append(Step(StepKind.WORKDIR, ("/",), text="WORKDIR / (as every Dockerfile begins)"))
        self._drafts.append(draft)

    def _stage(self, name: str) -> _Draft | None:
        return next((draft for draft in self._drafts if draft.name == name), None)

    def _arg(self, instruction: Instruction) -> None:
        scope = self._draft.scope if self._drafts else self._global
        for word in split_words(instruction.rest, self._source.escape):
            pair = split_pair(word)
            name, default = pair or (word, None)
            if not NAME.fullmatch(name):
                self._refuse(f"{name!r} cannot be the name of an ARG")
            if name in self._arguments:
                self._used_arguments.add(name)
                scope.args[name] = self._arguments[name]
            elif default is not None:
                scope.args[name] = self._known(default, scope)
            elif scope is not self._global and name in self._global.args:
                scope.args[name] = self._global.args[name]
            elif name in PLATFORM:
                scope.args[name] = PLATFORM[name]

    # ── steps

    def _run(self, instruction: Instruction) -> None:
        flags, rest = split_flags(instruction.rest)
        if flags:
            self._refuse(
                f"RUN --{flags[0][0]} is not supported",
                hint="leave it out: package caches are not kept in the image anyway",
            )
        words = json_form(rest)
        if words is not None:
            if not words:
                self._refuse("RUN of an empty list")
            argv = tuple(words)
        else:
            argv = (*self._draft.config.shell, self._script(rest, instruction))
        given = self._draft.scope.visible_arguments()
        prefix = ("/usr/bin/env", *(f"{name}={value}" for name, value in given.items())) if given else ()
        self._step(StepKind.RUN, *prefix, *argv)

    def _script(self, rest: str, instruction: Instruction) -> str:
        """What the shell is told: the line, or the heredoc that is all there is, or the line with its
        heredocs below."""
        documents = instruction.heredocs
        if len(documents) == 1 and re.fullmatch(r"<<-?[\"']?\w+[\"']?", rest):
            if documents[0].text.startswith("#!"):
                self._refuse("a heredoc that begins with #!", hint="name the program: RUN python3 <<EOF")
            return documents[0].text
        return "\n".join([rest, *(document.text + document.name for document in documents)])

    def _copy(self, instruction: Instruction) -> None:
        flags, rest = split_flags(instruction.rest)
        options = self._copy_options(flags)
        words = json_form(rest)
        if words is None:
            words = split_words(rest, self._source.escape)
        else:
            words = [shlex.quote(word) if "'" not in word and " " in word else word for word in words]
        if len(words) < 2:
            self._refuse(f"{instruction.keyword} takes at least a source and a destination")
        *sources, destination = words
        target = (self._draft.scope.later(destination), *options[1:])
        if instruction.heredocs:
            self._copy_documents(instruction, sources, target)
            return
        named = [self._known(source) for source in sources]
        if options[0]:
            for source in named:
                self._step(StepKind.COPY, source, *target, files=options[0], expand=True)
            return
        if instruction.keyword == "ADD":
            self._add(named, target)
        else:
            self._place(self._files.pack(named), target)

    def _add(self, sources: Sequence[str], target: tuple[str, ...]) -> None:
        """As COPY, but the content of archives goes where they themselves would."""
        for source in sources:
            if _URL.match(source):
                self._refuse(
                    "ADD of a URL is not supported", hint="fetch it with RUN curl, and check its digest"
                )
        named = [path for source in sources for path in self._files.expand(source)]
        if not any(map(self._files.is_archive, named)):
            self._place(self._files.pack(sources), target)
            return
        if len(named) > 1:
            target = (f"{target[0].removesuffix('/')}/", *target[1:])
        for source in named:
            unpacks = self._files.is_archive(source)
            self._place(self._files.unpack(source) if unpacks else self._files.pack([source]), target)

    def _place(self, packed: Packed, target: tuple[str, ...]) -> None:
        source = packed.single.replace("\\", "\\\\").replace("$", "\\$").replace("}", "\\}")
        self._step(StepKind.COPY, source, *target, files=packed.reference, expand=True)

    def _copy_options(self, flags: Sequence[tuple[str, str | None]]) -> tuple[str, str, str]:
        """Where from (``stage:<name>`` or ""), whose, and with which mode.

        Files of a stage or an archive stay whose they are; those beside the manifest are root's.
        """
        stage, owner, mode = "", KEPT, ""
        for flag, value in flags:
            match flag:
                case "from" if value and self._at.keyword == "COPY":
                    stage = f"stage:{self._copied_stage(self._known(value))}"
                case "chown" if value:
                    owner = self._draft.scope.later(value)
                case "chmod" if value:
                    mode = self._draft.scope.later(value)
                case "link" if value in (None, "true", "false"):
                    pass  # how Docker keeps its layers; the files are the same
                case _:
                    self._refuse(f"--{flag} is not supported with {self._at.keyword}")
        return stage, owner, mode

    def _copied_stage(self, name: str) -> str:
        """The stage to copy from: by name, by number, or an image that is made one."""
        numbered = self._named_drafts()
        if name.isdecimal() and int(name) < len(numbered) - 1:
            return numbered[int(name)].name
        found = self._stage(name.lower())
        if found is self._draft:
            self._refuse("a stage cannot copy from itself")
        if found is not None:
            return found.name
        if name.isdecimal():
            self._refuse(f"there is no stage {name} before this one")
        called = f"image:{name}"
        if self._stage(called) is None:
            draft = _Draft(called, base_of(name, self._is_template), Scope(self._source.escape), Config())
            self._drafts.insert(len(self._drafts) - 1, draft)
        return called

    def _copy_documents(
        self, instruction: Instruction, sources: Sequence[str], target: tuple[str, ...]
    ) -> None:
        if len(sources) != len(instruction.heredocs) or not all(word.startswith("<<") for word in sources):
            self._refuse("files and heredocs in one instruction", hint="write two")
        texts = {
            document.name: document.text if document.raw else self._document(document.text)
            for document in instruction.heredocs
        }
        packed = self._files.pack_text(texts)
        self._step(StepKind.COPY, packed.single, *target, files=packed.reference, expand=True)

    def _document(self, text: str) -> str:
        """A heredoc's text: quotes mean nothing in it, variables do."""
        escape = self._source.escape
        return self._known("".join(f"{escape}{c}" if c in "\"'" else c for c in text))

    def _env(self, instruction: Instruction) -> None:
        scope = self._draft.scope
        words = split_words(instruction.rest, self._source.escape)
        pairs = [split_pair(word) for word in words]
        if pairs[0] is None:  # the old form: one name, and the rest is its value
            name, _, value = instruction.rest.partition(" ")
            pairs = [(name, value.strip())]
            if not value.strip():
                self._refuse("ENV takes name=value")
        set_now: dict[str, str | None] = {}
        args: list[str] = []
        for pair in pairs:
            if pair is None:
                self._refuse("ENV takes name=value, every time")
            name, value = pair
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]*", name):
                self._refuse(f"{name!r} cannot be the name of a variable")
            args += name, scope.later(value)
            set_now[name] = scope.now(value)
        self._step(StepKind.ENV, *args, expand=True)
        scope.env |= set_now

    def _workdir(self, instruction: Instruction) -> None:
        self._step(StepKind.WORKDIR, self._draft.scope.later(self._no_flags(instruction.rest)), expand=True)
        self._configure(workdir=True)

    def _user(self, instruction: Instruction) -> None:
        words = split_words(self._no_flags(instruction.rest), self._source.escape)
        if len(words) != 1:
            self._refuse("USER takes one name")
        self._step(StepKind.USER, self._draft.scope.later(words[0]), expand=True)
        self._configure(user=True)

    # ── what the image says of its processes

    def _expose(self, instruction: Instruction) -> None:
        ports = list(self._draft.config.ports)
        for word in split_words(instruction.rest, self._source.escape):
            match = _PORT.fullmatch(self._known(word))
            if match is None or match[3] == "udp":
                self._refuse(f"{word!r} is no TCP port", hint="such as 8080, or 8000-8003")
            first, last = int(match[1]), int(match[2] or match[1])
            if not 0 < first <= last <= 65535 or last - first >= _PORTS_MAX:
                self._refuse(f"{word!r} is no range of ports")
            ports += range(first, last + 1)
        self._configure(ports=tuple(dict.fromkeys(ports)))

    def _cmd(self, instruction: Instruction) -> None:
        self._configure(cmd=self._process(self._no_flags(instruction.rest)))

    def _entrypoint(self, instruction: Instruction) -> None:
        self._configure(entrypoint=self._process(self._no_flags(instruction.rest)))

    def _process(self, rest: str) -> tuple[str, ...] | str:
        """The exec form as its words, the shell form as one line for bash."""
        words = json_form(rest)
        if words is not None:
            return tuple(words)
        shell = self._draft.config.shell
        return rest if shell == SHELL else shlex.join((*shell, rest))

    def _shell(self, instruction: Instruction) -> None:
        words = json_form(instruction.rest)
        if not words:
            self._refuse('SHELL takes a list, such as ["/bin/bash", "-c"]')
        self._configure(shell=tuple(words))

    def _healthcheck(self, instruction: Instruction) -> None:
        flags, rest = split_flags(instruction.rest)
        for flag, _ in flags:
            if flag not in HEALTH_FLAGS:
                self._refuse(f"--{flag} is not supported with HEALTHCHECK")
        keyword, _, command = rest.partition(" ")
        if keyword.upper() == "NONE" and not command:
            self._configure(ready="")
            return
        if keyword.upper() != "CMD" or not command.strip():
            self._refuse("HEALTHCHECK takes CMD and a command, or NONE")
        process = self._process(command.strip())
        self._configure(ready=process if isinstance(process, str) else shlex.join(process))
        if flags:
            self._remark(
                "HEALTHCHECK is the ready check of the build: it is not run later, so its times say nothing"
            )

    def _unkept(self, instruction: Instruction) -> None:
        self._remark(f"{instruction.keyword} is not kept: templates have names and tags instead")

    def _remark(self, words: str) -> None:
        self._remarks.append(f"{self._file}:{self._at.line}: {words}")


_HANDLERS: Mapping[str, Callable[[_Planner, Instruction], None]] = {
    "FROM": _Planner._from,
    "ARG": _Planner._arg,
    "RUN": _Planner._run,
    "COPY": _Planner._copy,
    "ADD": _Planner._copy,
    "ENV": _Planner._env,
    "WORKDIR": _Planner._workdir,
    "USER": _Planner._user,
    "EXPOSE": _Planner._expose,
    "CMD": _Planner._cmd,
    "ENTRYPOINT": _Planner._entrypoint,
    "SHELL": _Planner._shell,
    "HEALTHCHECK": _Planner._healthcheck,
    "LABEL": _Planner._unkept,
    "MAINTAINER": _Planner._unkept,
}


def _start(config: Config) -> str | None:
    """ENTRYPOINT and CMD as one line for bash, put together as Docker does; None when neither is there."""
    entrypoint, cmd = config.entrypoint, config.cmd
    if not entrypoint:
        return cmd if cmd is None or isinstance(cmd, str) else shlex.join(cmd)
    if isinstance(entrypoint, str):
        return entrypoint  # a shell takes no more arguments
    more = () if cmd is None else (*SHELL, cmd) if isinstance(cmd, str) else cmd
    return shlex.join((*entrypoint, *more))
