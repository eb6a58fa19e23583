"""Plans: as JSON, as they are kept, and which of their stages are needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from wardian.builds.errors import BuildFailed
from wardian.images.oci.reference import LOCAL
from wardian.model.build import BaseKind, Lock, Plan, Stage, StepKind
from wardian.model.errors import Invalid

ARGUMENTS: Mapping[StepKind, tuple[int, int]] = {
    StepKind.RUN: (1, 4096),
    StepKind.COPY: (4, 4),
    StepKind.ENV: (2, 4096),
    StepKind.WORKDIR: (1, 1),
    StepKind.USER: (1, 1),
}
"""How many arguments a step has, at least and at most."""

_PLAN, _LOCK = TypeAdapter(Plan), TypeAdapter(Lock)
T = TypeVar("T")


def plan_of(body: bytes) -> Plan:
    """A plan from JSON, checked strictly. Raises :class:`Invalid`."""
    plan = _checked(_PLAN, body, "plan")
    for number, step in enumerate((step for stage in plan.stages for step in stage.steps), 1):
        count = len(step.args)
        least, most = ARGUMENTS[step.kind]
        is_odd = step.kind is StepKind.ENV and count % 2
        if not least <= count <= most or is_odd or any("\0" in each for each in step.args):
            raise Invalid(f"this is no plan: step {number} is no {step.kind}", code="bad_plan")
    if not all(0 < port < 1 << 16 for port in plan.ports):
        raise Invalid("this is no plan: a port is between 1 and 65535", code="bad_plan")
    return plan


def lock_of(body: bytes) -> Lock:
    """A lock from JSON, checked strictly. Raises :class:`Invalid`."""
    return _checked(_LOCK, body, "lock")


def _checked(adapter: TypeAdapter[T], body: bytes, what: str) -> T:
    try:
        return adapter.validate_json(body, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise Invalid(f"this is no {what}: {place}: {first['msg']}", code=f"bad_{what}") from None


def kept(plan: Plan) -> Mapping[str, Any]:
    """What is kept of a plan: everything but the passwords of registries."""
    stages = tuple(replace(stage, base=replace(stage.base, password="")) for stage in plan.stages)
    values: Mapping[str, Any] = _PLAN.dump_python(replace(plan, stages=stages), mode="json")
    return values


def of_kept(kept: Mapping[str, Any] | None) -> Plan:
    """A plan that was kept, without what was not. Of None, one that asks for nothing."""
    return Plan(()) if kept is None else _PLAN.validate_python(kept)


def reads_the_host(plan: Plan) -> bool:
    """Whether a base of the plan is a file of the host's."""
    return any(
        stage.base.kind is BaseKind.IMAGE and stage.base.reference.partition(":")[0] in LOCAL
        for stage in plan.stages
    )


def templates_below(plan: Plan) -> Sequence[str]:
    """The templates that a plan builds upon: what its last stage stands on, or copies from, or they do."""
    try:
        stages = needed_stages(plan.stages)
    except BuildFailed:
        return ()  # as the build will say
    return [stage.base.reference for stage in stages if stage.base.kind is BaseKind.TEMPLATE]


def needed_stages(all_stages: Sequence[Stage]) -> Sequence[Stage]:
    """The last stage and those it is made of, in order. Raises :class:`BuildFailed` for no proper plan."""
    if not all_stages:
        raise BuildFailed("the plan has no stage")
    seen: set[str] = set()
    for stage in all_stages:
        for name in _dependencies(stage):
            if name not in seen:
                raise BuildFailed(
                    f"stage {stage.name!r} needs a stage {name!r}, which does not come before it"
                )
        if stage.name in seen:
            raise BuildFailed(f"two stages are called {stage.name!r}")
        seen.add(stage.name)
    wanted = {all_stages[-1].name}
    for stage in reversed(all_stages):
        if stage.name in wanted:
            wanted |= _dependencies(stage)
    return [stage for stage in all_stages if stage.name in wanted]


def _dependencies(stage: Stage) -> set[str]:
    base = {stage.base.reference} if stage.base.kind is BaseKind.STAGE else set()
    return base | set(_copied_from(stage))


def _copied_from(stage: Stage) -> Sequence[str]:
    """The stages that a stage's steps copy from."""
    found = (step.files.removeprefix("stage:") for step in stage.steps if step.files.startswith("stage:"))
    return list(dict.fromkeys(found))
