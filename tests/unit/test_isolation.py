"""What may be asked of the wall, in which order walls are strong, and which driver is chosen for it."""

from __future__ import annotations

from functools import partial

import pytest
from tests.lifecycle.fakes import MemoryDriver, World

from wardian.isolation.drivers import Drivers
from wardian.isolation.port import Driver
from wardian.model.errors import Invalid, Unavailable, WardianError
from wardian.model.isolation import (
    Isolation,
    IsolationLevel,
    Wanted,
    isolation_of,
    minimum_of,
    strongest_first,
)

KVM, EMULATED, GVISOR = (
    IsolationLevel.MICROVM_KVM,
    IsolationLevel.MICROVM_EMULATED,
    IsolationLevel.GVISOR,
)
WEAKEST_FIRST = [EMULATED, GVISOR, KVM]


async def drivers(**levels: IsolationLevel | str) -> Drivers:
    """Drivers by name; those with words for a level do not work, and say them."""

    def make(name: str, level: IsolationLevel | str) -> Driver:
        broken = not isinstance(level, IsolationLevel)
        world = World(name, EMULATED if broken else IsolationLevel(level))
        world.reason = str(level) if broken else ""
        return MemoryDriver(world)

    return await Drivers.probe({name: partial(make, name, level) for name, level in levels.items()})


# ── levels


def test_levels_are_strong_in_one_order() -> None:
    for place, level in enumerate(WEAKEST_FIRST):
        assert [level.satisfies(minimum) for minimum in WEAKEST_FIRST] == [
            place >= other for other in range(3)
        ]
        assert level.satisfies(None)


def test_an_emulated_microvm_satisfies_no_minimum_that_a_key_can_have() -> None:
    for word in ("microvm", "gvisor", "microvm-kvm"):
        assert not EMULATED.satisfies(minimum_of(word))


@pytest.mark.parametrize(
    ("word", "level"), [("microvm", KVM), ("microvm-kvm", KVM), ("gvisor", GVISOR), (" GVISOR ", GVISOR)]
)
def test_a_minimum_of_microvm_is_one_under_kvm(word: str, level: IsolationLevel) -> None:
    assert minimum_of(word) is level


@pytest.mark.parametrize(
    ("word", "code"),
    [
        ("auto", "bad_minimum_isolation"),
        ("microvm-emulated", "bad_minimum_isolation"),
        ("docker", "bad_isolation"),
        ("", "bad_isolation"),
    ],
)
def test_what_is_no_minimum_is_refused(word: str, code: str) -> None:
    with pytest.raises(WardianError) as refused:
        minimum_of(word)
    assert refused.value.code == code
    assert refused.value.hint


def test_what_is_wanted_twice_is_both() -> None:
    body, header = Wanted(Isolation.MICROVM), Wanted(None, GVISOR)
    assert body.and_also(header) == Wanted(Isolation.MICROVM, GVISOR)
    assert header.and_also(body) == Wanted(Isolation.MICROVM, GVISOR)
    assert Wanted(None, KVM).and_also(Wanted(None, GVISOR)).minimum is KVM
    assert Wanted(None, GVISOR).and_also(Wanted(None, KVM)).minimum is KVM
    with pytest.raises(WardianError) as refused:
        body.and_also(Wanted(Isolation.GVISOR))
    assert refused.value.code == "isolation_contradicted"


@pytest.mark.parametrize("base", Isolation)
@pytest.mark.parametrize("said", [None, *Isolation])
def test_a_template_upon_another_is_not_weaker(base: Isolation, said: Isolation | None) -> None:
    wanted, worst = Wanted(said), min(base.levels, key=WEAKEST_FIRST.index)
    if said is None:
        assert wanted.upon(base).asked is base
    elif base is not Isolation.AUTO and any(
        WEAKEST_FIRST.index(each) < WEAKEST_FIRST.index(worst) for each in said.levels
    ):
        with pytest.raises(Invalid) as refused:
            wanted.upon(base)
        assert refused.value.code == "isolation_below_base"
    else:
        assert wanted.upon(base) == wanted


def test_of_several_templates_below_the_strongest_is_handed_on() -> None:
    kinds = [Isolation(each) for each in ("auto", "microvm-emulated", "gvisor", "microvm", "microvm-kvm")]
    assert [str(each) for each in strongest_first(kinds)] == [
        "microvm-kvm", "gvisor", "microvm", "microvm-emulated", "auto",
    ]  # fmt: skip


def test_a_template_only_says_what_nobody_else_does() -> None:
    assert Wanted().else_as(Isolation.MICROVM).asked is Isolation.MICROVM
    assert Wanted(Isolation.GVISOR).else_as(Isolation.MICROVM).asked is Isolation.GVISOR


# ── drivers


@pytest.mark.parametrize(
    ("there", "asked", "minimum", "chosen"),
    [
        ({"gvisor": GVISOR}, "auto", None, "gvisor"),
        ({"gvisor": GVISOR, "qemu": KVM}, "auto", None, "qemu"),
        ({"gvisor": GVISOR, "qemu": EMULATED}, "auto", None, "gvisor"),  # not at native speed
        ({"gvisor": GVISOR, "qemu": EMULATED}, "microvm", None, "qemu"),
        ({"gvisor": GVISOR, "qemu": EMULATED}, "microvm-emulated", None, "qemu"),
        ({"fire": KVM, "qemu": KVM}, "microvm", None, "fire"),  # the first of equals
        ({"gvisor": GVISOR, "qemu": KVM}, "gvisor", None, "gvisor"),
        ({"gvisor": GVISOR, "qemu": EMULATED}, "auto", GVISOR, "gvisor"),
        ({"gvisor": GVISOR, "qemu": KVM}, "auto", KVM, "qemu"),
    ],
)
async def test_the_best_level_that_will_do_is_chosen(
    there: dict[str, IsolationLevel | str], asked: str, minimum: IsolationLevel | None, chosen: str
) -> None:
    wanted = Wanted(isolation_of(asked), minimum)
    assert (await drivers(**there)).choose(wanted).name == chosen


@pytest.mark.parametrize(
    ("there", "asked", "minimum", "code", "words"),
    [
        ({"gvisor": GVISOR}, "microvm", None, "isolation_unavailable", "gvisor: works, as gvisor"),
        ({"qemu": "no /dev/kvm"}, "auto", None, "isolation_unavailable", "qemu: no /dev/kvm"),
        ({"gvisor": GVISOR, "qemu": EMULATED}, "microvm-kvm", None, "isolation_unavailable", "emulated"),
        ({"qemu": EMULATED}, "auto", None, "isolation_unavailable", "qemu: works, as microvm-emulated"),
        # A minimum of microvm is one under KVM: the emulator will not do, though it was asked for.
        ({"gvisor": GVISOR, "qemu": EMULATED}, "microvm", KVM, "isolation_unavailable", "at least"),
        ({"gvisor": GVISOR, "qemu": EMULATED}, "auto", KVM, "isolation_unavailable", "at least"),
        ({"qemu": KVM}, "microvm-emulated", GVISOR, "isolation_below_minimum", "weaker"),
        ({"gvisor": GVISOR}, "gvisor", KVM, "isolation_below_minimum", "weaker"),
    ],
)
async def test_what_cannot_be_had_is_refused_with_every_reason(
    there: dict[str, IsolationLevel | str],
    asked: str,
    minimum: IsolationLevel | None,
    code: str,
    words: str,
) -> None:
    with pytest.raises(WardianError) as refused:
        (await drivers(**there)).choose(Wanted(isolation_of(asked), minimum))
    assert refused.value.code == code
    assert words in refused.value.message
    assert refused.value.hint


async def test_memory_goes_to_the_driver_that_captured_it_or_nowhere() -> None:
    known = await drivers(gvisor=GVISOR, qemu="qemu-system-x86_64 is missing")
    assert known.restoring("gvisor", Wanted()).name == "gvisor"
    for name, wanted, code in (
        ("qemu", Wanted(), "isolation_unavailable"),
        ("elsewhere", Wanted(), "isolation_unavailable"),
        ("gvisor", Wanted(Isolation.MICROVM), "isolation_differs"),
        ("gvisor", Wanted(None, KVM), "isolation_below_minimum"),
    ):
        with pytest.raises(WardianError) as refused:
            known.restoring(name, wanted)
        assert refused.value.code == code
    with pytest.raises(WardianError, match="qemu-system-x86_64 is missing"):
        known.restoring("qemu", Wanted())


async def test_a_driver_that_cannot_be_put_together_is_told_of_like_any_other() -> None:
    def missing() -> Driver:
        raise Unavailable("runsc is missing", hint="run `make setup`")

    found = await Drivers.probe({"gvisor": missing})
    (host,) = found.hosts
    assert (host.driver, host.usable, host.reason, host.remedy) == (
        "gvisor",
        False,
        "runsc is missing",
        "run `make setup`",
    )
    with pytest.raises(Unavailable, match="runsc is missing") as refused:
        found.check_usable()
    assert refused.value.code == "isolation_unusable"
    assert found.named("gvisor") is None
    assert await found.sweep({}) == []
    await found.close()


async def test_each_driver_sweeps_only_its_own_machines() -> None:
    one, two = World("one"), World("two")
    known = await Drivers.probe({"one": lambda: MemoryDriver(one), "two": lambda: MemoryDriver(two)})
    kept, stray = one.body(None), two.body(None)  # type: ignore[arg-type]
    assert await known.sweep({"one": {kept.id}, "two": set()}) == [stray.id]
    assert list(one.bodies) == [kept.id]
    one.clear()
