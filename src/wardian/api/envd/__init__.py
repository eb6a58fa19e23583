"""The data plane: what E2B's agent ``envd`` offers, answered on the host.

``build_data_plane(sandboxes, record=...)`` makes the ASGI application; ``is_for_a_sandbox(headers, path,
query)`` says whether a request belongs to it. Nothing of the protocol runs inside a sandbox.
"""

from wardian.api.envd.app import DataPlane, build_data_plane
from wardian.api.envd.plane import Record
from wardian.api.envd.routing import is_for_a_sandbox

__all__ = ["DataPlane", "Record", "build_data_plane", "is_for_a_sandbox"]
