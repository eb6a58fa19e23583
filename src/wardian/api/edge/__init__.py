"""Where strangers come in by a name: TLS, HTTP/2, and the proxy for those who have no DNS for it.

The plain listener of ``wardian.api.http`` needs nothing of this. With a domain there are two more doors: one
that speaks TLS, and one that takes ``CONNECT``. Behind all of them is the same ASGI application.
"""
