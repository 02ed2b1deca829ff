"""Who may ask the review page's server: the page itself, opened by its secret address, and nobody else.

The token is a segment of the address's path, not a cookie. A cookie would be sent by any page of this machine's other
servers too (cookies know no ports), so that every write would hang on further checks alone; who does not know the path
can ask nothing. It ends with the server, and the page never tells it to others (`Referrer-Policy`).
"""

import json
import secrets
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOSTS = ("127.0.0.1", "localhost")
"""Names of this machine: a page of another name that leads here (DNS rebinding) is refused. Ports may be forwarded."""

LARGEST_BODY = 16_384
"""So many bytes a request may have: a decision takes some hundred."""

HEADERS = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}
"""Headers of every answer that does not have its own."""


def new_token() -> str:
    """Return a token that cannot be guessed."""
    return secrets.token_urlsafe(24)


def guarded(app: ASGIApp, token: str) -> ASGIApp:
    """Return an app that answers what lies below `/TOKEN`, to this machine's own names, and refuses all else (403)."""

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
    """Say why a request is refused; nothing where it is not."""
    headers = Headers(scope=scope)
    host = headers.get("host", "")
    if _host_name(host) not in HOSTS:
        return "The page is served to this machine only, as 127.0.0.1 or localhost."
    given = scope["path"].split("/")[1] if scope["path"].startswith("/") else ""
    if not secrets.compare_digest(given.encode("utf-8", "surrogatepass"), token.encode()):
        return "The address has no valid token: open the one that tagseg review has printed."
    if scope["method"] not in ("GET", "HEAD") and headers.get("origin") != f"http://{host}":
        return "Only the page itself may write."
    return ""


def _host_name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


async def read_json(request: Request) -> dict[str, Any]:
    """Return the JSON object that a request brings.

    Raises:
        HTTPException: 415 when it is not declared as JSON, 413 when it is too large, 400 when it is no JSON object.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "expected a body of type application/json")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST_BODY:
            raise HTTPException(413, f"expected a body of at most {LARGEST_BODY} bytes")
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "expected JSON") from error
    if not isinstance(found, dict):
        raise HTTPException(400, "expected a JSON object")
    return found
