"""Who may ask: whoever has the link, from a page of this server, under its own address."""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

NO_FRAMES = "form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
OWN = f"default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; {NO_FRAMES}"
"""What the app's own pages may load: JSON Editor sets styles of elements."""
REPORT_POLICY = f"default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; {NO_FRAMES}"
"""A report carries its script and style in itself, and talks to nobody."""
HEADERS = {
    "Content-Security-Policy": OWN,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
FOREIGN = ("cross-site", "same-site")
"""Values of Sec-Fetch-Site: another origin sent the browser here."""


@dataclass(frozen=True, slots=True)
class Guard:
    """Refuses a name of the machine that is not its own (DNS rebinding), other origins and missing tokens; adds the headers."""

    app: ASGIApp
    token: str
    port: int

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return

        async def answered(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = self.refusal(scope)
        answer: ASGIApp = self.app if refusal is None else PlainTextResponse(refusal, status_code=403)
        await answer(scope, receive, answered)

    def refusal(self, scope: Scope) -> str | None:
        """Why a request is not answered; None where it is."""
        headers = Headers(scope=scope)
        hosts = [f"{name}:{self.port}" for name in ("127.0.0.1", "localhost")]
        if scope["type"] != "http":
            return "this server answers plain requests only"
        if headers.get("host") not in hosts:
            return f"ask for {hosts[0]}: this server answers to no other name"
        origin = headers.get("origin")
        if origin is not None and origin not in [f"http://{host}" for host in hosts]:
            return "another page sent this request"
        given = scope["path"].split("/")[1]
        if not hmac.compare_digest(given.encode(), self.token.encode()):
            return "the token is missing or of an earlier start: open the link that `autotune ui` printed"
        if headers.get("sec-fetch-site") in FOREIGN and headers.get("sec-fetch-mode") != "navigate":
            return "another page sent this request"
        return None
