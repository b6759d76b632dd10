"""The door of the server: pages of other sites may not call it, and who is turned away at a full queue is counted."""

import logging
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from .health import REFUSALS

log = logging.getLogger(__name__)
ANY = "*"


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

        async def counted(message):
            if message["type"] == "http.response.start" and message["status"] == 503 and scope["path"].endswith("/queue/join"):
                REFUSALS.labels("queue").inc()
                log.info("The queue is full.", extra={"event": "refused", "field": "queue"})
            await send(message)

        return await self.app(scope, receive, counted)

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
