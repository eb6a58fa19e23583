"""What every request body has in common."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, model_validator

from wardian.model.errors import Unsupported


class Body(BaseModel):
    """A request body. Types are strict: a number is not a string, 1 is not true."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    @model_validator(mode="after")
    def _refuse_unknown(self) -> Self:
        for key, value in (self.model_extra or {}).items():
            if value not in (None, False, "", [], {}):
                raise self._refusal(key)
        return self

    def _refusal(self, key: str) -> Unsupported:
        """Why a key that says something is refused."""
        return Unsupported(f"option '{key[:64]}' is not known to this server", code="unknown_option")


RESOURCES = frozenset({"cpuCount", "memoryMB", "diskSizeMB"})
"""As answers call them."""


class OfOneSize(Body):
    """A request about a sandbox, whose size is its template's for its whole life."""

    def _refusal(self, key: str) -> Unsupported:
        if key not in RESOURCES:
            return super()._refusal(key)
        return Unsupported(
            f"{key} cannot be asked for here: a sandbox is as large as its template says, also after a pause "
            "and as a fork",
            code="resources_fixed",
            hint="build a template that is as large (`wardian template build --cpus --memory --disk`), and "
            "create from that",
        )


def template_reference(reference: str) -> str:
    """A template or snapshot as a client names it; the tag that everything has may be left out."""
    return reference.strip().lower().removesuffix(":default")
