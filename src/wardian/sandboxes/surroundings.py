"""What the processes of a sandbox start in."""

from __future__ import annotations

from wardian.model.sandbox import Sandbox


def sandbox_environment(sandbox: Sandbox) -> dict[str, str]:
    """What every process of a sandbox finds in its environment, before its own variables."""
    return {
        "E2B_SANDBOX": "true",
        "E2B_SANDBOX_ID": sandbox.id,
        "E2B_TEMPLATE_ID": sandbox.template_id,
        **sandbox.surroundings.env,
        **sandbox.spec.env,
    }


__all__ = ["sandbox_environment"]
