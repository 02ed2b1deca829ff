"""The review page's server: the page, its list, its pictures, and what is decided, stored at once."""

import contextlib
import os
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, get_args

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from tagseg._version import __version__
from tagseg.masks.palette import VOID_COLOUR, class_colours
from tagseg.report.render import css, render_page
from tagseg.review.access import guarded, new_token, read_json
from tagseg.review.images import Shown, draw_overlay, show_queue
from tagseg.review.queue import WANTED, Queue, ReviewItem, choose_page, count_verdicts, read_queue
from tagseg.run.decisions import (
    NEUTRAL,
    OPEN,
    Decision,
    MaskPair,
    Verdict,
    accepted_masks,
    decisions,
    record_decision,
)
from tagseg.run.folder import Run
from tagseg.settings.bounds import Port, check_value

PAGE = 60
"""So many images of a list come at a time, at most."""

_POLICY = "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
"""What of the page's policy can be said in a header only, and what can be said twice; see base.html.j2."""


@dataclass(frozen=True)
class Review:
    """What is served: the queue, its pictures, and everything that was decided about it, as in the database."""

    queue: Queue
    shown: Shown
    decided: dict[str, Decision]
    writing: Lock = field(default_factory=Lock)


def review(run: str | Path, port: int = 0, ready: Callable[[str], None] = lambda address: None) -> None:
    """Serve the review page of a run on this machine alone, until interrupted.

    Args:
        run: a run folder whose masks are made.
        port: where to listen; 0: any port that is free.
        ready: is told the page's address, which holds a secret token, as soon as it can be opened.

    Raises:
        RunError: when the run has no masks to review.
        ValueError: when nobody may listen at the port.
    """
    queue = read_queue(Run(Path(run)))
    token = new_token()
    app = make_app(queue, token)
    with listen(port) as listener:
        ready(f"http://127.0.0.1:{listener.getsockname()[1]}/{token}/")
        # It ends itself when interrupted, and then passes the interruption on.
        with contextlib.suppress(KeyboardInterrupt):
            make_server(app).run(sockets=[listener])


def listen(port: int) -> socket.socket:
    """Return a socket that listens to this machine alone.

    Raises:
        ValueError: when the port is none, or is taken.
    """
    check_value("--port", port, Port)
    # Only where the protocol is named will asyncio send small answers at once: otherwise each takes 40 ms more.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen()
        return listener
    except OSError as error:
        listener.close()
        raise ValueError(f"--port {port}: cannot be used ({error.strerror}); choose another, or 0 for any") from error


def make_server(app: ASGIApp) -> uvicorn.Server:
    """Return a server that writes no log: addresses hold the token."""
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, ws="none", lifespan="off",
        timeout_graceful_shutdown=2,
    )  # fmt: skip
    return uvicorn.Server(config)


def make_app(queue: Queue, token: str) -> ASGIApp:
    """Return the app that serves a queue to those who know the token."""
    routes = [
        Route("/", show_page),
        Route("/list", show_list),
        Route("/thumb", show_thumb),
        Route("/photo", show_photo),
        Route("/mask", show_mask),
        Route("/decide", store_decision, methods=["POST"]),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _refuse, ValueError: _explain})
    app.state.review = Review(queue, show_queue(queue), decisions(queue.run))
    return guarded(app, token)


def show_page(request: Request) -> Response:
    """Answer with the page."""
    held = _review(request)
    queue = held.queue
    # Whoever opens the page anew also sees what others have decided meanwhile.
    held.decided.update(decisions(queue.run))
    colours = [css(colour) for colour in class_colours(len(queue.classes))]
    html = render_page(
        "review.html.j2",
        ("review.css",),
        ("review_parts.js", "review_server.js", "review_keys.js", "review.js"),
        title="Review",
        version=__version__,
        run=str(queue.run.root),
        scored=any(entry.score is not None for entry in queue.entries[:1]),
        about={
            "names": ["background", *queue.classes],
            "colours": colours,
            "void": css(VOID_COLOUR),
            "neutral": NEUTRAL,
            "page": PAGE,
        },
    )
    return HTMLResponse(html, headers={"content-security-policy": _POLICY})


def show_list(request: Request) -> Response:
    """Answer with a page of the list: `verdict` (or all), `class` (0: any), `from` a place on or `until` one."""
    held = _review(request)
    verdict = request.query_params.get("verdict", "open")
    if verdict not in WANTED:
        raise HTTPException(400, f"verdict: got {verdict!r:.200}, expected {', '.join(WANTED)}")
    until = _number(request, "until", -1)
    page = choose_page(
        held.queue, dict(held.decided), verdict, _number(request, "class", 0),
        min(max(_number(request, "count", PAGE), 1), PAGE), _number(request, "from", 0), until if until >= 0 else None,
    )  # fmt: skip
    items = [_item(held, place) for place in page.places]
    counts = count_verdicts(held.queue, dict(held.decided))
    return JSONResponse({"total": page.total, "first": page.first, "items": items, "counts": counts})


def show_thumb(request: Request) -> Response:
    """Answer with the thumbnail of the image `id`."""
    place, _ = _asked(request)
    return Response(_review(request).shown.thumb(place), media_type="image/jpeg")


def show_photo(request: Request) -> Response:
    """Answer with the photo `id`."""
    place, _ = _asked(request)
    return Response(_review(request).shown.photo(place), media_type="image/jpeg")


def show_mask(request: Request) -> Response:
    """Answer with the mask of the image `id`, without the classes that are `off`, by the `threshold`."""
    place, entry = _asked(request)
    values = request.query_params
    try:
        off = sorted({int(class_id) for class_id in values.get("off", "").split(",") if class_id})
        wanted = Decision("open", tuple(off), float(values.get("threshold", NEUTRAL)))
    except ValueError as error:
        raise HTTPException(400, f"off, threshold: expected class ids and a number ({error})") from error
    return Response(draw_overlay(_masks(_review(request), place, entry, wanted)), media_type="image/png")


async def store_decision(request: Request) -> Response:
    """Store a decision, `{"id", "verdict", "off", "threshold"}`, and answer with the counts when it is on disk."""
    held = _review(request)
    values = await read_json(request)
    place, entry = _entry(held, values.get("id"))
    decision = read_decision(values, len(held.queue.classes))
    return JSONResponse(await run_in_threadpool(_store, held, place, entry, decision))


def read_decision(values: Mapping[str, Any], classes: int) -> Decision:
    """Return the decision in a request's JSON, for a data set of so many classes.

    Raises:
        HTTPException: 400, saying what came and what was expected.
    """
    expected = {"id", "verdict", "off", "threshold"}
    if set(values) != expected:
        raise HTTPException(400, f"got {sorted(values)!r:.200}, expected {sorted(expected)}")
    verdict, off, threshold = values["verdict"], values["off"], values["threshold"]
    if verdict not in get_args(Verdict):
        raise HTTPException(400, f"verdict: got {verdict!r:.200}, expected {', '.join(get_args(Verdict))}")
    if not isinstance(off, list) or not all(type(one) is int and 0 < one <= classes for one in off):
        raise HTTPException(400, f"off: got {off!r:.200}, expected a list of class ids, 1 to {classes}")
    if type(threshold) not in (int, float) or not 0 < threshold < 1:
        raise HTTPException(400, f"threshold: got {threshold!r:.200}, expected a number between 0 and 1")
    return Decision(verdict, tuple(sorted(set(off))), float(threshold))


def _store(held: Review, place: int, entry: ReviewItem, decision: Decision) -> dict[str, Any]:
    with held.writing:
        masks = _masks(held, place, entry, decision) if decision.verdict == "accepted" else None
        record_decision(held.queue.run, entry.sample.id, decision, masks)
        held.decided[entry.sample.id] = decision
    return {"item": _item(held, place), "counts": count_verdicts(held.queue, dict(held.decided))}


def _masks(held: Review, place: int, entry: ReviewItem, wanted: Decision) -> MaskPair:
    """Return the masks to be seen, or accepted: those that were accepted, as long as nothing else is asked for."""
    before = held.decided.get(entry.sample.id)
    if before and before.verdict == "accepted" and (before.off, before.threshold) == (wanted.off, wanted.threshold):
        kept = accepted_masks(held.queue.run, entry.sample.id, entry.size)
        if kept:
            return kept
    # The run's own masks are made with what was decided; of undecided images alone they are known to be as they came.
    fresh = before is not None or (wanted.off, wanted.threshold) != (OPEN.off, OPEN.threshold)
    return held.shown.masks(place, wanted.off, wanted.threshold, fresh)


def _item(held: Review, place: int) -> dict[str, Any]:
    entry = held.queue.entries[place]
    decision = held.decided.get(entry.sample.id, OPEN)
    return {
        "place": place,
        "id": entry.sample.id,
        "height": entry.size[0],
        "width": entry.size[1],
        "tags": entry.sample.tags,
        "score": entry.score,
        "scores": {str(class_id): score for class_id, score in entry.classes.items()},
        "verdict": decision.verdict,
        "off": decision.off,
        "threshold": decision.threshold,
    }


def _asked(request: Request) -> tuple[int, ReviewItem]:
    return _entry(_review(request), request.query_params.get("id"))


def _entry(held: Review, sample_id: Any) -> tuple[int, ReviewItem]:
    """Look an id up: what is asked for never becomes part of a path."""
    place = held.queue.places.get(sample_id) if isinstance(sample_id, str) else None
    if place is None:
        raise HTTPException(404, "id: no such image in this run")
    return place, held.queue.entries[place]


def _number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, str(default))
    if not re.fullmatch(r"-?[0-9]{1,9}", text):
        raise HTTPException(400, f"{name}: got {text[:20]!r}, expected a whole number")
    return int(text)


def _review(request: Request) -> Review:
    held: Review = request.app.state.review
    return held


def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code)


def _explain(request: Request, error: Exception) -> Response:
    """Answer with what is wrong with the run or the data: the user can mend it, the server goes on."""
    return JSONResponse({"error": str(error)}, 409)
