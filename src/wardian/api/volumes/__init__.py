"""The content of volumes over HTTP, as the SDKs ask for it: ``/volumecontent/{id}/path|dir|file``.

A volume's own token opens it, and nothing else; an API key means nothing here.
"""

from wardian.api.volumes.app import build_content_plane

__all__ = ["build_content_plane"]
