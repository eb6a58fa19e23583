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
                raise Unsupported(f"option '{key[:64]}' is not known to this server", code="unknown_option")
        return self


def template_reference(reference: str) -> str:
    """A template or snapshot as a client names it; the tag that everything has may be left out."""
    return reference.strip().lower().removesuffix(":default")
