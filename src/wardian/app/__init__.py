"""The composition root: the only place where parts are put together."""

from wardian.app.server import App, start

__all__ = ["App", "start"]
