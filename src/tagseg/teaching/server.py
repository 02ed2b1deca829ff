"""The teach page's server: questions with crops, answers that are stored at once, and the masks that follow."""

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, get_args

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from tagseg._version import __version__
from tagseg.masks.palette import shown_colours
from tagseg.report.overlay import encoded
from tagseg.report.render import css, render_page
from tagseg.review.access import read_body
from tagseg.review.server import PAGE_POLICY, listen, page_app, serve_page
from tagseg.run.folder import Run
from tagseg.run.taught import Meant
from tagseg.system.progress import Track, silent
from tagseg.teaching.clusters import find_cluster
from tagseg.teaching.lesson import (
    Lesson,
    answered,
    learn_noted,
    news_of,
    next_questions,
    note_name,
    note_others,
    note_removal,
    open_lesson,
)
from tagseg.teaching.pictures import draw_beliefs, draw_crop
from tagseg.teaching.teach import CLUSTER_CROPS, shapes_of
from tagseg.teaching.terminal import summary

MASKS = 6
"""Masks under view: the images that the cluster touches most."""

MASK_SIDE = 320
"""Long side of a mask under view, in pixels."""

KEPT_CROPS = 600
"""Crops kept in memory, a few MB."""

RECENT = 100
"""Most answers listed on the page."""


@dataclass
class Classroom:
    """The state of the server: the lesson, and the thread that looks at all images after each answer.

    version: how often the beliefs have changed. news: what the last change was, in words. followed: numbers of the
    answers that version and news follow. crop: draws a crop, given the cluster's key and its number. waiting: set when
    there is something to learn, or the server has `ended`. learner: the thread.
    """

    lesson: Lesson
    crop: Callable[[str, int], bytes]
    version: int = 0
    news: str = ""
    followed: frozenset[int] = frozenset()
    waiting: threading.Event = field(default_factory=threading.Event)
    ended: bool = False
    learner: threading.Thread | None = None


def serve_lesson(
    run: Run, port: int = 0, ready: Callable[[str], None] = lambda address: None, track: Track = silent
) -> None:
    """Serve the teach page of a run, to this machine only, until interrupted.

    Args:
        run: a run made from frozen features.
        port: the port to listen on; 0: any free port.
        ready: called with the page's address, which contains a secret token, as soon as the page can be opened.
        track: reports progress while the lesson is prepared.

    Raises:
        RunError: as `open_lesson`.
        ValueError: when the port cannot be used.
    """
    with listen(port) as listener:
        room = open_classroom(open_lesson(run, track))
        try:
            serve_page(listener, functools.partial(make_lesson_app, room), ready)
        finally:
            close_classroom(room)


def open_classroom(lesson: Lesson) -> Classroom:
    """Return the server's state, with its thread started."""

    @functools.lru_cache(KEPT_CROPS)
    def crop(key: str, number: int) -> bytes:
        place, shape = shapes_of(lesson, key)[number]
        colour = shown_colours(len(lesson.classes))[find_cluster(lesson.clusters, key).tag]
        return encoded(draw_crop(lesson, place, shape, colour), "jpeg", quality=80)

    room = Classroom(lesson, crop, followed=frozenset(lesson.learned))
    room.learner = threading.Thread(target=_keep_learning, args=(room,), daemon=True)
    room.learner.start()
    return room


def close_classroom(room: Classroom) -> None:
    """End the thread, after the images that it is looking at."""
    room.ended = True
    room.waiting.set()
    if room.learner is not None:
        room.learner.join()


def _keep_learning(room: Classroom) -> None:
    while True:
        room.waiting.wait()
        room.waiting.clear()
        if room.ended:
            return
        try:
            news = news_of(room.lesson, learn_noted(room.lesson))
            followed = frozenset(room.lesson.learned)
        except (ValueError, OSError) as error:  # a file of the run is damaged: the page says so
            news, followed = str(error), frozenset(room.lesson.given)
        with room.lesson.desk:  # together: a page that sees its answer followed does not look again
            room.news, room.version, room.followed = news, room.version + 1, followed


def make_lesson_app(room: Classroom, token: str) -> ASGIApp:
    """Return the app that serves a lesson to clients that know the token."""
    routes = [
        Route("/", show_lesson),
        Route("/state", show_state),
        Route("/crop", show_crop),
        Route("/photo", show_lesson_photo),
        Route("/mask", show_lesson_mask),
        Route("/answer", store_answer, methods=["POST"]),
        Route("/undo", undo_answer, methods=["POST"]),
    ]
    return page_app(routes, token, room=room)


def show_lesson(request: Request) -> Response:
    """Respond with the page."""
    lesson = _room(request).lesson
    html = render_page(
        "teach.html.j2",
        ("review.css", "teach.css"),
        ("review_parts.js", "review_keys.js", "teach.js"),
        title="Teach",
        version=__version__,
        run=str(lesson.run.root),
        about={
            "names": ["background", *lesson.classes],
            "colours": [css(colour) for colour in shown_colours(len(lesson.classes))],
        },
    )
    return HTMLResponse(html, headers={"content-security-policy": PAGE_POLICY})


def show_state(request: Request) -> Response:
    """Respond with the best question (of the class `tag`, 0: any), the answers, and what the last change was."""
    room = _room(request)
    with room.lesson.desk:
        before = set(room.lesson.given)
        note_others(room.lesson)
        if before != set(room.lesson.given):
            room.waiting.set()
    return JSONResponse(lesson_state(room, _number_of(request, "tag")))


def show_crop(request: Request) -> Response:
    """Respond with crop `number` of the cluster `key`."""
    room, key = _room(request), request.query_params.get("key", "")
    try:
        return Response(room.crop(key, _number_of(request, "number")), media_type="image/jpeg")
    except (KeyError, IndexError) as error:
        raise HTTPException(404, "key, number: no such crop") from error


def show_lesson_photo(request: Request) -> Response:
    """Respond with the photo of image `id`."""
    lesson, place = _image(request)
    photo, _ = draw_beliefs(lesson, place, MASK_SIDE)
    return Response(encoded(photo, "jpeg", quality=80), media_type="image/jpeg")


def show_lesson_mask(request: Request) -> Response:
    """Respond with the mask of image `id` as the bank decides it now, without the dense CRF."""
    lesson, place = _image(request)
    _, mask = draw_beliefs(lesson, place, MASK_SIDE)
    return Response(encoded(mask, "png", transparency=0, compress_level=3), media_type="image/png")


async def store_answer(request: Request) -> Response:
    """Store what a cluster shows, `{"key", "meaning", "class", "tag"}`, and respond with the next question (of
    the class `tag`, 0: any) once it is on disk. What changes follows in `state`."""
    room, values = _room(request), await read_body(request)
    key, meaning, class_id, tag = _answer(values, len(room.lesson.classes))

    def store() -> dict[str, Any]:
        number = note_name(room.lesson, key, meaning, class_id)
        room.waiting.set()
        return {**lesson_state(room, tag), "number": number}

    return JSONResponse(await run_in_threadpool(store))


async def undo_answer(request: Request) -> Response:
    """Remove the answer `{"number", "tag"}` and respond with the state."""
    room, values = _room(request), await read_body(request)
    number, tag = values.get("number"), values.get("tag", 0)
    if type(number) is not int or type(tag) is not int or not 0 < number < 2**53:
        raise HTTPException(400, f"number, tag: got {number!r:.100}, {tag!r:.100}, expected whole numbers")

    def remove() -> dict[str, Any]:
        removed = note_removal(room.lesson, number)
        room.waiting.set()
        # Its question again, and not the next best one: the user wants to answer it otherwise.
        return lesson_state(room, tag, removed.question)

    return JSONResponse(await run_in_threadpool(remove))


def _answer(values: dict[str, Any], classes: int) -> tuple[str, Meant, int, int]:
    expected = {"key", "meaning", "class", "tag"}
    if set(values) != expected:
        raise HTTPException(400, f"got {sorted(values)!r:.200}, expected {sorted(expected)}")
    key, meaning, class_id, tag = values["key"], values["meaning"], values["class"], values["tag"]
    if not isinstance(key, str) or meaning not in get_args(Meant):
        raise HTTPException(400, f"meaning: got {meaning!r:.200}, expected {', '.join(get_args(Meant))}")
    if type(class_id) is not int or not 0 <= class_id <= classes or type(tag) is not int:
        raise HTTPException(400, f"class, tag: got {class_id!r:.100}, {tag!r:.100}, expected 0 to {classes}")
    return key, meaning, class_id, tag


def lesson_state(room: Classroom, tag: int, key: str = "") -> dict[str, Any]:
    """Return what the page shows: the question (the best one of the class `tag`, 0: any; or the one called `key`), the
    answers, how many clusters are left, and what the last change was."""
    lesson = room.lesson
    if key:
        question = next((one for one in next_questions(lesson, 1 << 30) if one.key == key), None)
    else:
        question = next(iter(next_questions(lesson, 1, tag)), None)
    with lesson.desk:
        given, left = answered(lesson), len(lesson.clusters.open)
        learned = lesson.given.keys() == room.followed
        found: dict[str, Any] = {"question": None, "left": left, "version": room.version, "learned": learned}
        found["news"] = room.news
        found["count"] = len(given)
        found["answers"] = [[number, summary(one)] for number, one in given[:RECENT]]
        if question is not None:
            shapes = shapes_of(lesson, question.key)[:CLUSTER_CROPS]
            images = [lesson.cells.samples[place].id for place, _ in shapes]
            found["question"] = {
                "key": question.key,
                "tag": question.tag,
                "images": question.images,
                "cells": question.cells,
                "expected": [[entry, round(share, 3)] for entry, share in question.expected],
                "crops": images,
                "masks": images[:MASKS],
            }
    return found


def _room(request: Request) -> Classroom:
    room: Classroom = request.app.state.room
    return room


def _image(request: Request) -> tuple[Lesson, int]:
    lesson = _room(request).lesson
    place = lesson.cells.places.get(request.query_params.get("id", ""))
    if place is None:
        raise HTTPException(404, "id: no such image with tags in this run")
    return lesson, place


def _number_of(request: Request, name: str) -> int:
    text = request.query_params.get(name, "0")
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise HTTPException(400, f"{name}: got {text[:20]!r}, expected a whole number")
    return int(text)
