"""The door of the server: pages of other sites may not call it, nobody may send much, and refusals at a full queue are counted."""

import logging
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from .health import REFUSALS

log = logging.getLogger(__name__)
ANY = "*"
MOST = 3 * 2**20  # bytes of a request's body: a file of 2 MB in its wrapping, and far more than any call
TOO_MUCH = f"A request may hold {MOST // 2**20} MB at most."


def host(text):
    """`localhost:7860` -> `localhost`; None where there is no host."""
    try:
        return urlsplit(f"//{text}").hostname
    except ValueError:
        return None


class Gate:
    """ASGI middleware. hosts: the names under which this server may be called, from any origin of these names; a page of
    another site could otherwise have its visitors' browsers call a server that listens on their own machine only.

    "*" lets every name and origin through: for a server that is public anyway.
    """

    def __init__(self, app, hosts):
        self.app, self.hosts = app, set(hosts)

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        if wrong := self.wrong(headers):
            return await JSONResponse({"detail": wrong}, 403)(scope, receive, send)
        if int(headers.get("content-length", 0)) > MOST:  # the server itself has refused what is no number
            return await JSONResponse({"detail": TOO_MUCH}, 413)(scope, receive, send)
        size = 0

        async def bounded():
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > MOST:
                raise HTTPException(413, TOO_MUCH)
            return message

        async def counted(message):
            if message["type"] == "http.response.start" and message["status"] == 503 and scope["path"].endswith("/queue/join"):
                REFUSALS.labels("queue").inc()
                log.info("The queue is full.", extra={"event": "refused", "field": "queue"})
            await send(message)

        return await self.app(scope, bounded, counted)

    def wrong(self, headers):
        """Why a request with these headers is not let in, or ""."""
        if ANY in self.hosts:
            return ""
        if host(headers.get("host", "")) not in self.hosts:
            return f"This server is called {' or '.join(sorted(self.hosts))} only: see hosts in spaces_config.yaml."
        origin = headers.get("origin")
        if origin is not None and host(origin.partition("://")[2]) not in self.hosts:
            return "Pages of other sites may not call this server."
        return ""
