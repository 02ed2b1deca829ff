"""Access control for the review page's server: only the page itself, opened at its secret address, may use it.

The token is a segment of the URL path, not a cookie. Cookies ignore ports, so pages of other servers on this machine
would send one too, and writes would depend on other checks alone. Without the path, a client can do nothing. The token
expires with the server, and the page never discloses it (`Referrer-Policy`).
"""

import secrets
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tagseg.system.records import parse_json

HOSTS = ("127.0.0.1", "localhost")
"""Names of this machine; other names that resolve to it (DNS rebinding) are refused. Forwarded ports are allowed."""

LARGEST_BODY = 16_384
"""Most bytes in the body of a request; a decision takes a few hundred."""

HEADERS = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}
"""Default headers of every response."""


def new_token() -> str:
    """Return an unguessable token."""
    return secrets.token_urlsafe(24)


def guarded(app: ASGIApp, token: str) -> ASGIApp:
    """Return an app that serves paths below `/TOKEN` under this machine's own names and refuses all else (403)."""

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        problem = _refusal(scope, token)
        if problem:
            await JSONResponse({"error": problem}, 403)(scope, receive, send_safely)
            return
        await app({**scope, "root_path": f"/{token}"}, receive, send_safely)

    return guard


def _refusal(scope: Scope, token: str) -> str:
    """Return why a request is refused; empty if it is not."""
    headers = Headers(scope=scope)
    host = headers.get("host", "")
    if _host_name(host) not in HOSTS:
        return "This page is only served at 127.0.0.1 or localhost."
    given = scope["path"].split("/")[1] if scope["path"].startswith("/") else ""
    if not secrets.compare_digest(given.encode("utf-8", "surrogatepass"), token.encode()):
        return "The address has no valid token: open the address that tagseg printed."
    if scope["method"] not in ("GET", "HEAD") and headers.get("origin") != f"http://{host}":
        return "Only the review page itself may store decisions."
    return ""


def _host_name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


async def read_body(request: Request) -> dict[str, Any]:
    """Return the JSON object in the body of a request.

    Raises:
        HTTPException: 415 when the content type is not JSON, 413 when the body is too large, 400 when it is not a JSON
            object.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "expected a body of type application/json")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST_BODY:
            raise HTTPException(413, f"expected a body of at most {LARGEST_BODY} bytes")
    try:
        found = parse_json(bytes(body))
    except ValueError as error:
        raise HTTPException(400, "expected JSON") from error
    if not isinstance(found, dict):
        raise HTTPException(400, "expected a JSON object")
    return found
