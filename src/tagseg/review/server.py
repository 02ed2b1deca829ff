"""The review page's server: serves the page, its list and its pictures, and stores decisions immediately."""

import contextlib
import functools
import os
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, get_args

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from tagseg._version import __version__
from tagseg.masks.palette import VOID_COLOUR, shown_colours
from tagseg.report.render import css, render_page
from tagseg.review.access import guarded, new_token, read_body
from tagseg.review.fixing import FindRegion, read_fix, region_finder
from tagseg.review.images import QueuePictures, draw_overlay, queue_pictures
from tagseg.review.queue import WANTED, Queue, ReviewItem, choose_page, count_verdicts, read_queue, tagged_item
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
from tagseg.run.taught import fixed_parts, record_answer, remove_answer
from tagseg.settings.bounds import Port, check_value

PAGE = 60
"""Most images of a list in one response."""

PAGE_POLICY = (
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The parts of the page's policy that need a header, and those that may be repeated in one; see base.html.j2."""


@dataclass(frozen=True)
class Review:
    """The state of the server: the queue, its pictures, the decisions, as in the database, and what finds the region
    around a click. fixed: images whose clicks and strokes changed since the server started: the run's own masks may
    hold what was taken back."""

    queue: Queue
    pictures: QueuePictures
    decided: dict[str, Decision]
    find: FindRegion
    fixed: set[str] = field(default_factory=set)
    writing: Lock = field(default_factory=Lock)


def review(run: str | Path, port: int = 0, ready: Callable[[str], None] = lambda address: None) -> None:
    """Serve the review page of a run, to this machine only, until interrupted.

    Args:
        run: a run folder with masks.
        port: the port to listen on; 0: any free port.
        ready: called with the page's address, which contains a secret token, as soon as the page can be opened.

    Raises:
        RunError: when the run has no masks to review.
        ValueError: when the port cannot be used.
    """
    queue = read_queue(Run(Path(run)))
    with listen(port) as listener:
        serve_page(listener, functools.partial(make_app, queue), ready)


def serve_page(listener: socket.socket, make: Callable[[str], ASGIApp], ready: Callable[[str], None]) -> None:
    """Serve the app that `make` returns for a new token until interrupted; `ready` is called with its address."""
    token = new_token()
    app = make(token)
    ready(f"http://127.0.0.1:{listener.getsockname()[1]}/{token}/")
    # When interrupted, uvicorn shuts down and then raises the interruption again.
    with contextlib.suppress(KeyboardInterrupt):
        make_server(app).run(sockets=[listener])


def listen(port: int) -> socket.socket:
    """Return a socket that listens to connections from this machine only.

    Raises:
        ValueError: when the port is out of range or cannot be used.
    """
    check_value("--port", port, Port)
    # asyncio sends small responses immediately only if the protocol is named; otherwise each takes 40 ms longer.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen()
        return listener
    except OSError as error:
        listener.close()
        raise ValueError(
            f"--port {port}: cannot be used ({error.strerror}); choose another, or 0 for any free port"
        ) from error


def make_server(app: ASGIApp) -> uvicorn.Server:
    """Return a server without a log, because addresses contain the token."""
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, ws="none", lifespan="off",
        timeout_graceful_shutdown=2,
    )  # fmt: skip
    return uvicorn.Server(config)


def make_app(queue: Queue, token: str) -> ASGIApp:
    """Return the app that serves a queue to clients that know the token."""
    routes = [
        Route("/", show_page),
        Route("/list", show_list),
        Route("/thumb", show_thumb),
        Route("/photo", show_photo),
        Route("/mask", show_mask),
        Route("/decide", store_decision, methods=["POST"]),
        Route("/accept", accept_above, methods=["POST"]),
        Route("/fix", store_fix, methods=["POST"]),
        Route("/unfix", remove_fix, methods=["POST"]),
    ]
    review = Review(queue, queue_pictures(queue), decisions(queue.run), region_finder(queue.run))
    return page_app(routes, token, review=review)


def page_app(routes: Sequence[Route], token: str, **state: object) -> ASGIApp:
    """Return the app of a page with its `state`, for clients that know the token; errors are answered in words."""
    handlers: dict[Any, Callable[[Request, Exception], Response]] = {
        HTTPException: _refuse,
        ValueError: _explain,
        OSError: _explain,
        ClientDisconnect: _give_up,
    }
    app = Starlette(routes=routes, exception_handlers=handlers)
    for name, value in state.items():
        setattr(app.state, name, value)
    return guarded(app, token)


def show_page(request: Request) -> Response:
    """Respond with the page."""
    state = _review(request)
    queue = state.queue
    # Opening the page also shows decisions that others have made in the meantime.
    state.decided.update(decisions(queue.run))
    colours = [css(colour) for colour in shown_colours(len(queue.classes))]
    html = render_page(
        "review.html.j2",
        ("review.css",),
        ("review_parts.js", "review_server.js", "review_keys.js", "review_fix.js", "review_zoom.js", "review.js"),
        title="Review",
        version=__version__,
        run=str(queue.run.root),
        scored=any(item.score is not None for item in queue.items[:1]),
        about={
            "names": ["background", *queue.classes],
            "colours": colours,
            "void": css(VOID_COLOUR),
            "neutral": NEUTRAL,
            "network": queue.run.done("segment"),
            "page": PAGE,
        },
    )
    return HTMLResponse(html, headers={"content-security-policy": PAGE_POLICY})


def show_list(request: Request) -> Response:
    """Respond with a page of the list.

    Query: `verdict` (or all), `class` (0: any), and either the first place (`from`) or the end (`until`).
    """
    state = _review(request)
    verdict = request.query_params.get("verdict", "open")
    if verdict not in WANTED:
        raise HTTPException(400, f"verdict: got {verdict!r:.200}, expected {', '.join(WANTED)}")
    until = _number(request, "until", -1)
    page = choose_page(
        state.queue, dict(state.decided), verdict, _number(request, "class", 0),
        min(max(_number(request, "count", PAGE), 1), PAGE), _number(request, "from", 0), until if until >= 0 else None,
    )  # fmt: skip
    items = [_as_json(state, place) for place in page.places]
    counts = count_verdicts(state.queue, dict(state.decided))
    return JSONResponse({"total": page.total, "first": page.first, "items": items, "counts": counts})


def show_thumb(request: Request) -> Response:
    """Respond with the thumbnail of image `id`."""
    place, _ = _requested(request)
    return Response(_review(request).pictures.thumb(place), media_type="image/jpeg")


def show_photo(request: Request) -> Response:
    """Respond with photo `id`."""
    place, _ = _requested(request)
    return Response(_review(request).pictures.photo(place), media_type="image/jpeg")


def show_mask(request: Request) -> Response:
    """Respond with the mask of image `id`, without the classes that are `off` and by the `threshold`; with `network`,
    that of the run's segmentation network, without a threshold."""
    place, item = _requested(request)
    values = request.query_params
    try:
        off = sorted({int(class_id) for class_id in values.get("off", "").split(",") if class_id})
        wanted = Decision("open", tuple(off), float(values.get("threshold", NEUTRAL)))
    except ValueError as error:
        raise HTTPException(400, f"off, threshold: expected class ids and a number ({error})") from error
    state = _review(request)
    shown = _network(state, place, wanted) if "network" in values else _masks(state, place, item, wanted)
    return Response(draw_overlay(shown), media_type="image/png")


async def store_decision(request: Request) -> Response:
    """Store a decision, `{"id", "verdict", "off", "threshold"}`, and respond with the counts once it is on disk.

    With `"network": true` the mask of the segmentation network is accepted in place of the run's own."""
    state = _review(request)
    values = dict(await read_body(request))
    network = values.pop("network", False)
    place, item = _find_item(state, values.get("id"))
    decision = read_decision(values, len(state.queue.classes))
    if type(network) is not bool or (network and decision.verdict != "accepted"):
        raise HTTPException(400, f"network: got {network!r:.200}, expected true for an accepted mask, or false")
    return JSONResponse(await run_in_threadpool(_store, state, place, item, decision, network))


async def accept_above(request: Request) -> Response:
    """Accept all open masks whose expected IoU is at least `{"above"}` (0..1), and respond with how many and the counts
    once they are on disk."""
    state = _review(request)
    values = await read_body(request)
    above = values.get("above")
    if not isinstance(above, int | float) or isinstance(above, bool) or not 0 <= above <= 1:
        raise HTTPException(400, f"above: got {above!r:.200}, expected a number from 0 to 1")
    least = float(above)

    def accept() -> int:
        places = [
            (place, item)
            for place, item in enumerate(state.queue.items)
            if item.score is not None
            and item.score >= least
            and state.decided.get(item.sample.id, OPEN).verdict == "open"
        ]
        for place, item in places:
            before = state.decided.get(item.sample.id, OPEN)
            _store(state, place, item, Decision("accepted", before.off, before.threshold))
        return len(places)

    accepted = await run_in_threadpool(accept)
    return JSONResponse({"accepted": accepted, "counts": count_verdicts(state.queue, dict(state.decided))})


async def store_fix(request: Request) -> Response:
    """Store a click or a stroke (see `read_fix`), and respond with its number and the image once it is on disk."""
    state = _review(request)
    values = await read_body(request)
    place, item = _find_item(state, values.get("id"))

    def store() -> dict[str, Any]:
        number = record_answer(state.queue.run, read_fix(values, state.queue, item, state.find))
        state.fixed.add(item.sample.id)
        return {"number": number, "item": _as_json(state, place)}

    return JSONResponse(await run_in_threadpool(store))


async def remove_fix(request: Request) -> Response:
    """Remove the click or stroke `{"number"}` of image `{"id"}`, and respond with the image."""
    state = _review(request)
    values = await read_body(request)
    place, item = _find_item(state, values.get("id"))
    number = values.get("number")
    if type(number) is not int or number not in fixed_parts(state.queue.run, item.sample.id):
        raise HTTPException(409, f"number: image {item.sample.id} has no click or stroke {number!r:.50}")
    await run_in_threadpool(remove_answer, state.queue.run, number)
    state.fixed.add(item.sample.id)
    return JSONResponse({"item": _as_json(state, place)})


def read_decision(values: Mapping[str, Any], classes: int) -> Decision:
    """Return the decision in a request's JSON, for a data set with `classes` classes.

    Raises:
        HTTPException: 400 when it is not a decision; says what was found and what was expected.
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


def _store(state: Review, place: int, item: ReviewItem, decision: Decision, network: bool = False) -> dict[str, Any]:
    with state.writing:
        masks = None
        if network:
            masks = _network(state, place, decision)
        elif decision.verdict == "accepted":
            masks = _masks(state, place, item, decision)
        record_decision(state.queue.run, item.sample.id, decision, masks)
        state.decided[item.sample.id] = decision
    return {"item": _as_json(state, place), "counts": count_verdicts(state.queue, dict(state.decided))}


def _network(state: Review, place: int, wanted: Decision) -> MaskPair:
    item = state.queue.items[place]
    tags = tagged_item(state.queue, item, fixed_parts(state.queue.run, item.sample.id).values()).sample.tags
    return state.pictures.network(place, tuple(tag for tag in tags if tag not in wanted.off))


def _masks(state: Review, place: int, item: ReviewItem, wanted: Decision) -> MaskPair:
    """Return the masks to show or accept: accepted ones as they were, unless other classes or thresholds are wanted."""
    before = state.decided.get(item.sample.id)
    if before and before.verdict == "accepted" and (before.off, before.threshold) == (wanted.off, wanted.threshold):
        kept = accepted_masks(state.queue.run, item.sample.id, item.size)
        if kept:
            return kept
    parts = tuple(fixed_parts(state.queue.run, item.sample.id))
    # Decisions may have changed the run's own masks; only those of undecided images are known to be original.
    touched = before is not None or bool(parts) or item.sample.id in state.fixed
    fresh = touched or (wanted.off, wanted.threshold) != (OPEN.off, OPEN.threshold)
    return state.pictures.masks(place, wanted.off, wanted.threshold, fresh, parts)


def _as_json(state: Review, place: int) -> dict[str, Any]:
    item = state.queue.items[place]
    parts = fixed_parts(state.queue.run, item.sample.id)
    item = tagged_item(state.queue, item, parts.values())
    decision = state.decided.get(item.sample.id, OPEN)
    return {
        "place": place,
        "id": item.sample.id,
        "height": item.size[0],
        "width": item.size[1],
        "tags": item.sample.tags,
        "score": item.score,
        "reason": item.reason,
        "scores": {str(class_id): score for class_id, score in item.classes.items()},
        "verdict": decision.verdict,
        "off": decision.off,
        "threshold": decision.threshold,
        "parts": tuple(parts),
    }


def _requested(request: Request) -> tuple[int, ReviewItem]:
    return _find_item(_review(request), request.query_params.get("id"))


def _find_item(state: Review, sample_id: Any) -> tuple[int, ReviewItem]:
    """Look up an id, so that a request never becomes part of a path."""
    place = state.queue.places.get(sample_id) if isinstance(sample_id, str) else None
    if place is None:
        raise HTTPException(404, "id: no such image in this run")
    return place, state.queue.items[place]


def _number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, str(default))
    if not re.fullmatch(r"-?[0-9]{1,9}", text):
        raise HTTPException(400, f"{name}: got {text[:20]!r}, expected a whole number")
    return int(text)


def _review(request: Request) -> Review:
    state: Review = request.app.state.review
    return state


def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code)


def _give_up(request: Request, error: Exception) -> Response:
    """Return what nobody reads: the browser has left before its request was complete."""
    return Response(status_code=400)


def _explain(request: Request, error: Exception) -> Response:
    """Respond with the error in run, data or disk, which the user can fix while the server keeps running."""
    return JSONResponse({"error": str(error)}, 409)
