"""How strong the wall around a sandbox is: the levels, what may be asked for, what may be demanded.

Three levels, from the weakest to the strongest:

* ``microvm-emulated``: a kernel of its own in an emulated processor. QEMU's own security policy does not
  count its emulator as a boundary, so neither do we: it satisfies no minimum but itself.
* ``gvisor``: a user-space kernel that was written to be a boundary.
* ``microvm-kvm``: a kernel of its own under hardware virtualisation.

Why in this order: ``docs/decisions/0027``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from wardian.model.errors import Conflict, Forbidden, Invalid


class IsolationLevel(StrEnum):
    """How strong the wall is, in every API answer and audit record. Never labelled stronger than it is."""

    MICROVM_KVM = "microvm-kvm"
    MICROVM_EMULATED = "microvm-emulated"
    GVISOR = "gvisor"

    def satisfies(self, minimum: IsolationLevel | None) -> bool:
        """Whether it is at least as strong as ``minimum``; None demands nothing."""
        return minimum is None or _STRENGTH[self] >= _STRENGTH[minimum]


_STRENGTH = {
    IsolationLevel.MICROVM_EMULATED: 1,
    IsolationLevel.GVISOR: 2,
    IsolationLevel.MICROVM_KVM: 3,
}


class Isolation(StrEnum):
    """What a caller may ask for: a kind of wall, or exactly one level."""

    AUTO = "auto"  # the strongest that runs at native speed; never the emulator
    MICROVM = "microvm"  # a microVM: under KVM where that works, else emulated
    GVISOR = "gvisor"
    MICROVM_KVM = "microvm-kvm"
    MICROVM_EMULATED = "microvm-emulated"

    @property
    def levels(self) -> Sequence[IsolationLevel]:
        """The levels that this may come to, the best first."""
        match self:
            case Isolation.AUTO:
                return (IsolationLevel.MICROVM_KVM, IsolationLevel.GVISOR)
            case Isolation.MICROVM:
                return (IsolationLevel.MICROVM_KVM, IsolationLevel.MICROVM_EMULATED)
            case _:
                return (IsolationLevel(self.value),)

    @property
    def least(self) -> IsolationLevel:
        """The weakest level that this may come to."""
        return min(self.levels, key=_STRENGTH.__getitem__)


def strongest_first(said: Iterable[Isolation]) -> Sequence[Isolation]:
    """In the order of the weakest that each may come to; ``auto``, which demands nothing, last."""

    def rank(each: Isolation) -> tuple[bool, int, int]:
        return each is not Isolation.AUTO, _STRENGTH[each.least], _STRENGTH[each.levels[0]]

    return sorted(said, key=rank, reverse=True)


class BelowMinimum(Forbidden):
    """What is asked for, or is there, is weaker than the key that asks demands."""

    code = "isolation_below_minimum"


class OtherIsolation(Conflict):
    """What is there has another isolation than is asked for, and cannot change it."""

    code = "isolation_differs"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is wanted of the wall. ``asked`` None leaves it to the template, and else to ``auto``."""

    asked: Isolation | None = None
    minimum: IsolationLevel | None = None

    @property
    def levels(self) -> Sequence[IsolationLevel]:
        """The levels that will do, the best first. Raises :class:`BelowMinimum` if there are none."""
        asked = self.asked or Isolation.AUTO
        found = [level for level in asked.levels if level.satisfies(self.minimum)]
        if not found:
            raise self._too_weak(f"isolation '{asked}'")
        return found

    def else_as(self, asked: Isolation | None) -> Wanted:
        """The same, with ``asked`` where nothing is asked for."""
        return self if self.asked is not None else replace(self, asked=asked)

    def upon(self, base: Isolation | None) -> Wanted:
        """What is wanted of a template made of one that says ``base``: that, or what is no weaker."""
        if base is None or base is Isolation.AUTO or self.asked is None:
            return self.else_as(base)
        if not self.asked.least.satisfies(base.least):
            raise Invalid(
                f"isolation '{self.asked}' may be weaker than '{base}', which the template below says",
                code="isolation_below_base",
                hint=f"say nothing and inherit '{base}', or say what is as strong at least",
            )
        return self

    def and_also(self, other: Wanted) -> Wanted:
        """Both: what either asks for, and the stronger of their minimums."""
        if self.asked is not None and other.asked is not None and self.asked is not other.asked:
            raise Invalid(
                f"isolation '{self.asked}' and '{other.asked}' are asked for at once",
                code="isolation_contradicted",
                hint="say it once: in the header or in the body",
            )
        return replace(self, asked=self.asked or other.asked).at_least(other.minimum)

    def at_least(self, minimum: IsolationLevel | None) -> Wanted:
        """The same, with ``minimum`` where that is the stronger one."""
        if minimum is None or (self.minimum is not None and self.minimum.satisfies(minimum)):
            return self
        return replace(self, minimum=minimum)

    def check(self, level: IsolationLevel, what: str) -> None:
        """Let ``what``, which is there already and has ``level``, pass only if that is what is wanted."""
        if not level.satisfies(self.minimum):
            raise self._too_weak(f"{what} has isolation '{level}', which")
        if self.asked is not None and level not in self.asked.levels:
            raise OtherIsolation(
                f"{what} has isolation '{level}', and '{self.asked}' is asked for",
                hint="memory stays with what captured it; start from a template, or from a snapshot of files",
            )

    def _too_weak(self, what: str) -> BelowMinimum:
        return BelowMinimum(
            f"{what} is weaker than this key's minimum, '{self.minimum}'",
            hint="ask for nothing and get at least the minimum, or use another key",
        )


def isolation_of(text: str) -> Isolation:
    """What ``text`` asks for. Raises :class:`Invalid`."""
    try:
        return Isolation(text.strip().lower())
    except ValueError:
        words = ", ".join(Isolation)
        raise Invalid(
            f"isolation is one of {words}, not {text[:32]!r}",
            code="bad_isolation",
            hint="see docs/isolation.md",
        ) from None


def minimum_of(text: str) -> IsolationLevel:
    """What ``text`` demands at least. ``microvm`` as a minimum is one under KVM. Raises :class:`Invalid`."""
    asked = isolation_of(text)
    if asked in (Isolation.AUTO, Isolation.MICROVM_EMULATED):
        raise Invalid(
            f"'{asked}' is no minimum: everything there is satisfies it",
            code="bad_minimum_isolation",
            hint="a minimum is microvm (under KVM) or gvisor; leave it out to demand nothing",
        )
    return asked.levels[0]
