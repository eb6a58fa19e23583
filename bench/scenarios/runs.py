"""What a durable run costs: start, steps, recovery, waiting, and many at once; beside DBOS alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import psutil

from bench.agents import Agents
from bench.clients import create_and_run, elapsed
from bench.engines import Alone, engines
from bench.lab import Lab, Pools
from bench.measure import Contender, Kind, Row, Section, take_turns
from bench.scenarios.idle import cpu_of, pss_of

STEPS = 10
FIRST = 'run.step("first", lambda: None, checkpoint="never")'
SEVERAL = """
spent = []
for number in range(run.input["steps"]):
    started = time.perf_counter()
    run.step("step", lambda: number, checkpoint=run.input["checkpoint"])
    spent.append(1000 * (time.perf_counter() - started))
run.result(spent)
"""
ENDLESS = """
run.step("kept", lambda: None, checkpoint="always")
while True:
    run.step("beat", lambda: time.sleep(0.02), checkpoint="never")
"""
THREE = 'for number in range(3): run.step("step", lambda: number, checkpoint="never")'
ASKER = 'run.ask("?")'
PROGRAMS = {"first": FIRST, "several": SEVERAL, "endless": ENDLESS, "asker": ASKER, "three": THREE}
POOL = "machines of the pool"
START, KEPT, RESULT = "Wardian", "Wardian, with its machine", "Wardian, the result alone"


def run(lab: Lab) -> Sequence[Section]:
    server = lab.server(Pools(hot=2))
    agents = Agents(server)
    for name, program in PROGRAMS.items():
        agents.freeze(name, program, attempts=100)
    with engines(lab.scratch, lab.postgres) as alone:
        found = [_start(lab, agents, alone), _steps(lab, agents, alone), _recovery(lab, agents, alone)]
    return [*found, *_waiting(lab, agents), _crowd(lab, agents)]


def _start(lab: Lab, agents: Agents, alone: dict[str, Alone]) -> Section:
    rounds = lab.rounds(quick=5, full=20)

    def once() -> float:
        agents.server.settle()
        asked = time.time()
        told = agents.end(agents.begin("first"))
        return float(told["steps"][0]["begunAt"] / 1e3 - 1e3 * asked)

    def sandbox() -> float:
        agents.server.settle()
        return create_and_run(agents.server.endpoint)

    field = [
        Contender(START, once, Kind.WARDIAN),
        Contender("a sandbox's create and first command", sandbox, Kind.WARDIAN),
        *(Contender(name, _starter(each)) for name, each in alone.items()),
    ]
    with lab.progress("run: start", rounds + 1) as tick:
        rows = take_turns(field, rounds=rounds, tick=tick)
    notes = (
        "From the request to the first step's begin. A run has a sandbox of its own in which Python starts; "
        "DBOS begins a function of its own process.",
    )
    return Section("run-start", "Run: to its first step", "ms", START, rows, notes)


def _starter(each: Alone) -> Callable[[], float]:
    return lambda: float(each.ask("start"))


def _steps(lab: Lab, agents: Agents, alone: dict[str, Alone]) -> Section:
    rounds = lab.rounds(quick=3, full=10)

    def of_ours(checkpoint: str) -> Callable[[], list[float]]:
        given = {"steps": STEPS, "checkpoint": checkpoint}
        return lambda: list(agents.end(agents.begin("several", given))["result"])

    def of_theirs(each: Alone) -> Callable[[], list[float]]:
        return lambda: list(each.ask(f"steps {STEPS}"))

    spent: dict[str, list[float]] = {}

    def median_of(name: str, several: Callable[[], list[float]]) -> Callable[[], float]:
        def once() -> float:
            found = several()
            spent.setdefault(name, []).extend(found)
            return float(np.median(found))

        return once

    field = [
        Contender(KEPT, median_of(KEPT, of_ours("always")), Kind.WARDIAN),
        Contender(RESULT, median_of(RESULT, of_ours("never")), Kind.WARDIAN),
        *(Contender(name, median_of(name, of_theirs(each))) for name, each in alone.items()),
    ]
    with lab.progress("run: steps", rounds) as tick:
        rows = take_turns(field, rounds=rounds, tick=tick, warm_up=0)
    told = tuple(Row(row.name, row.kind, tuple(spent.get(row.name, ())), row.error) for row in rows)
    notes = (
        f"A step that does nothing, as its program sees it, {STEPS} in a row. Ours are asked for over HTTP, "
        "from inside gVisor, by two requests and more; DBOS writes from the process that does them.",
    )
    return Section("run-step", "Run: a step and its commit", "ms", RESULT, told, notes)


def _recovery(lab: Lab, agents: Agents, alone: dict[str, Alone]) -> Section:
    rounds = lab.rounds(quick=2, full=6)

    def machine(run: str) -> int:
        agents.kill_machine(run)
        return agents.committed(run) + 1  # one may have been on its way

    def server(run: str) -> int:
        agents.server.crash()
        after = agents.committed(run)
        agents.server.start()
        return after

    def recovered(kill: Callable[[str], int]) -> float:
        agents.server.settle()
        run = agents.begin("endless")
        agents.until(run, lambda _, committed: committed > 2)
        started = time.perf_counter()
        after = kill(run)
        agents.until(run, lambda _, committed: committed > after)
        spent = elapsed(started)
        agents.cancel(run)
        return spent

    killed = "Wardian, its machine"
    field = [
        Contender(killed, lambda: recovered(machine), Kind.WARDIAN),
        Contender("Wardian, its server", lambda: recovered(server), Kind.WARDIAN),
        *(Contender(f"{name}, its process", each.recover) for name, each in alone.items()),
    ]
    with lab.progress("run: recovery", rounds) as tick:
        rows = take_turns(field, rounds=rounds, tick=tick, warm_up=0)
    notes = ("From `kill -9` to the next commit. A server's and a process's time has their start in it.",)
    return Section("run-recovery", "Run: killed, to its next step", "ms", killed, rows, notes)


def _waiting(lab: Lab, agents: Agents) -> Sequence[Section]:
    count, window_s = (20, 4.0) if lab.quick else (200, 15.0)
    memory, busy = [], []

    def measure(name: str) -> None:
        agents.server.settle()
        ours = [agents.server.pid, *(each.pid for each in psutil.Process(agents.server.pid).children())]
        machines = [pid for pids in agents.server.machines().values() for pid in pids]
        memory.append(Row(name, Kind.WARDIAN, (pss_of(ours),)))
        memory.append(Row(f"{name}: {POOL}", Kind.WARDIAN, (pss_of(machines),)))
        busy.append(Row(name, Kind.WARDIAN, (cpu_of([*ours, *machines], window_s),)))

    nobody, waiting = "no run", f"{count} that wait"
    with lab.progress("run: waiting", count + 2) as tick:
        measure(nobody)
        tick()
        runs = []
        for _ in range(count):
            runs.append(agents.begin("asker"))
            agents.until(runs[-1], lambda state, _: state == "waiting")
            tick()
        measure(waiting)
        tick()
        for each in runs:
            agents.cancel(each)
    note = ("The server and its bridge; and the machines of the pool, as runs that wait have none.",)
    return [
        Section(
            "run-waiting-pss", f"{count} runs that wait: memory (PSS)", "MB", waiting, tuple(memory), note
        ),
        Section(
            "run-waiting-cpu",
            f"{count} runs that wait: processor time over {window_s:g} s",
            "% of a core",
            waiting,
            tuple(busy),
            note,
        ),
    ]


def _crowd(lab: Lab, agents: Agents) -> Section:
    count, rounds = (10, 1) if lab.quick else (50, 2)

    def at_once() -> float:
        started = time.perf_counter()
        for each in [agents.begin("three") for _ in range(count)]:
            agents.end(each)
        return elapsed(started)

    def in_turn() -> float:
        started = time.perf_counter()
        for _ in range(count):
            agents.end(agents.begin("three"))
        return elapsed(started)

    together = f"{count} at once"
    field = [
        Contender(together, at_once, Kind.WARDIAN),
        Contender("one after the other", in_turn, Kind.WARDIAN),
    ]
    with lab.progress("run: crowd", rounds) as tick:
        rows = take_turns(field, rounds=rounds, tick=tick, warm_up=0)
    return Section("run-crowd", f"{count} runs of three steps, to the end of the last", "ms", together, rows)
