"""The teach page in a real headless Chromium: name, split, undo, two windows, and a server that is killed."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tagseg.data.images import read_mask_file
from tagseg.data.prepare import prepare
from tagseg.masks.map_files import map_file, read_maps
from tagseg.masks.mask_files import mask_file
from tagseg.pipeline import fit_until
from tagseg.review.queue import read_queue
from tagseg.review.server import make_app
from tagseg.run.folder import Run
from tagseg.run.taught import answers, fixed_parts
from tagseg.teaching.apply import is_applied
from tagseg.teaching.lesson import next_questions, note_name, open_lesson
from tagseg.teaching.server import close_classroom, lesson_state, make_lesson_app, open_classroom

TOKEN = "a-token-of-tests"


@pytest.fixture
def address(run: Run, serving: Any) -> Iterator[str]:
    """Serve the teach page of a run in a thread."""
    room = open_classroom(open_lesson(run))
    with serving(make_lesson_app(room, TOKEN)) as port:
        yield f"http://127.0.0.1:{port}/{TOKEN}/"
    close_classroom(room)


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Callable[[str], Any]]:
    """Return a function that opens the page in a window; at the end, check for errors."""
    contexts: list[Any] = []
    wrong: list[str] = []

    def open_page(address: str, forgiving: bool = False, selector: str = "") -> Any:
        contexts.append(chromium.new_context(viewport={"width": 1200, "height": 800}))
        page = contexts[-1].new_page()
        page.set_default_timeout(60_000)
        if not forgiving:
            page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(address)
        if selector:
            page.wait_for_selector(selector)
        else:
            ready(page)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def ready(page: Any) -> None:
    """Wait until the question and its masks are shown and all images have been looked at."""
    page.wait_for_selector("#names li")
    page.wait_for_selector("#masks[aria-busy=false] img")
    page.wait_for_function("() => !document.getElementById('news').textContent.startsWith('Looking')")


def wait_for(page: Any, text: str, where: str) -> None:
    page.wait_for_function("([id, text]) => document.getElementById(id).textContent.includes(text)", arg=[where, text])


def test_an_answer_counts_as_followed_only_when_the_page_can_say_what_it_changed(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    lesson, free, told = open_lesson(run), threading.Event(), threading.Event()

    def slow(*values: Any) -> str:
        told.set()
        assert free.wait(60)
        return "news"

    monkeypatch.setattr("tagseg.teaching.server.news_of", slow)
    room = open_classroom(lesson)
    assert lesson_state(room, 0)["learned"]
    note_name(lesson, next_questions(lesson)[0].key, "background")
    room.waiting.set()
    assert told.wait(60) and lesson.learned
    assert not lesson_state(room, 0)["learned"]
    free.set()
    close_classroom(room)
    state = lesson_state(room, 0)
    assert state["learned"] and state["news"] == "news" and state["version"] == 1


def first_crop(page: Any) -> str:
    found: str = page.get_attribute("#crops img", "src")
    return found


def test_a_cluster_is_named_with_a_key_split_and_undone(address: str, open_page: Any, run: Run) -> None:
    page = open_page(address)
    sizes = "all => Promise.all(all.map(one => one.decode().then(() => one.naturalWidth > 0)))"
    assert all(page.eval_on_selector_all("#crops img, #masks img", sizes))
    assert page.get_attribute("#crops img", "alt").startswith("Example 1, image ")
    before, masks = first_crop(page), page.get_attribute("#masks", "data-version")
    page.keyboard.press("b")
    wait_for(page, "Saved: background", "saved")
    wait_for(page, "masks changed, by", "news")
    wait_for(page, "All answers together: ", "news")
    page.wait_for_function(f"() => !['', '{masks}'].includes(document.getElementById('masks').dataset.version)")
    assert [one.meaning for one in answers(run).values()] == ["background"] and first_crop(page) != before
    page.keyboard.press("1")
    wait_for(page, "2 answers", "count")
    named = list(answers(run).values())[1]
    assert named.meaning == "class" and named.name == named.tag
    split = first_crop(page)
    page.keyboard.press("m")
    wait_for(page, "Saved: mixed", "saved")
    ready(page)
    page.keyboard.press("z")
    wait_for(page, "Removed answer 3", "saved")
    assert first_crop(page) == split, "the question whose answer was taken back is asked again"
    page.click("#answers li:last-child button")
    wait_for(page, "Removed answer 1", "saved")
    assert [one.name for one in answers(run).values()] == [named.name]
    page.keyboard.press("?")
    assert page.is_visible("#help")
    page.keyboard.press("b")
    page.keyboard.press("Escape")
    assert len(answers(run)) == 1, "keys do nothing while the help is open"


def test_two_windows_do_not_overwrite_one_another(address: str, open_page: Any, run: Run) -> None:
    one, other = open_page(address, True), open_page(address, True)
    assert first_crop(one) == first_crop(other)
    one.keyboard.press("b")
    wait_for(one, "Saved: background", "saved")
    other.keyboard.press("1")
    wait_for(other, "answered in the meantime", "saved")
    assert [found.meaning for found in answers(run).values()] == ["background"]
    wait_for(other, "1 answers", "count")
    other.keyboard.press("s")
    wait_for(other, "Saved: skip", "saved")
    assert [found.meaning for found in answers(run).values()] == ["background", "skip"]


@pytest.fixture
def review_address(run: Run, serving: Any) -> Iterator[str]:
    """Serve the review page of the run in a thread."""
    with serving(make_app(read_queue(run), TOKEN)) as port:
        yield f"http://127.0.0.1:{port}/{TOKEN}/"


PIXELS = """() => {
    const canvas = Object.assign(document.createElement("canvas"), {width: 64, height: 48});
    const context = canvas.getContext("2d");
    context.drawImage(document.querySelector("#layers .mask"), 0, 0, 64, 48);
    return [...context.getImageData(0, 0, 64, 48).data].filter((value, index) => index % 4 === 3 && value > 127).length;
}"""


def test_click_brush_and_eraser_fix_a_mask_and_are_undone(
    review_address: str, open_page: Any, run: Run, discs: Any
) -> None:
    page = open_page(review_address, selector="#layers[aria-busy=false]")

    def settled(text: str) -> int:
        wait_for(page, text, "saved")
        page.wait_for_selector("#layers[aria-busy=false]")
        found: int = page.evaluate(PIXELS)
        return found

    name = page.text_content("#name")
    before = page.evaluate(PIXELS)
    page.keyboard.press("b")
    box = page.locator("#layers").bounding_box()
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 0.9 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 0.9 * box["height"], steps=5)
    page.mouse.up()
    painted = settled("brush")
    assert painted > before
    (stroke,) = fixed_parts(run, name).values()
    assert stroke.kind == "brush" and stroke.radius == pytest.approx(0.02) and len(stroke.places[0].points) > 2
    page.keyboard.press("e")
    page.mouse.click(box["x"] + 0.5 * box["width"], box["y"] + 0.9 * box["height"])
    assert settled("eraser") < painted
    page.keyboard.press("z")
    assert settled("Undone") == painted
    page.keyboard.press("z")
    page.wait_for_function("() => document.getElementById('undo').disabled")
    assert settled("Undone") == before and not fixed_parts(run, name)
    page.keyboard.press("c")
    page.select_option("#paint", "0")
    page.focus("#layers")
    page.keyboard.press("ArrowLeft")
    wait_for(page, "from the left", "mark")
    page.keyboard.press("Enter")
    settled("click background")
    assert page.text_content("#name") == name, "the keys of the mark do not move on"
    (click,) = fixed_parts(run, name).values()
    assert click.kind == "click" and click.grid is not None
    # The region is background in this mask, and taught: other masks follow.
    fit_until(discs, run.root, "masks")
    mask = read_mask_file(mask_file(run.decided_masks, name))
    x, y = click.places[0].points[0]
    assert mask[int(y * mask.shape[0]), int(x * mask.shape[1])] == 0 and is_applied(run)


def test_marking_a_class_without_its_tag_adds_the_tag(
    review_address: str, open_page: Any, run: Run, discs: Any
) -> None:
    page = open_page(review_address, selector="#layers[aria-busy=false]")
    name = page.text_content("#name")
    tagged = {one.id: one.tags for one in prepare(run).dataset.split("train")}
    missing = next(number for number in (1, 2, 3) if number not in tagged[name])
    class_name = prepare(run).dataset.classes[missing - 1]
    rows = page.locator("#classes li").count()
    assert page.get_attribute(f"#paint option[value='{missing}'] >> xpath=..", "label") == "Missing tags"
    page.keyboard.press("b")
    page.select_option("#paint", str(missing))
    page.focus("#layers")
    page.keyboard.press("Enter")
    wait_for(page, f"brush {class_name}", "saved")
    page.wait_for_selector("#layers[aria-busy=false]")
    assert page.locator("#classes li").count() == rows + 1
    page.keyboard.press("z")
    wait_for(page, "Undone", "saved")
    assert page.locator("#classes li").count() == rows and not fixed_parts(run, name)
    page.keyboard.press("c")
    page.select_option("#paint", str(missing))
    page.focus("#layers")
    page.keyboard.press("Enter")
    wait_for(page, f"click {class_name}", "saved")
    assert missing in next(one for one in prepare(run).dataset.split("train") if one.id == name).tags
    fit_until(discs, run.root, "masks")
    mask = read_mask_file(mask_file(run.decided_masks, name))
    assert (mask == missing).any() and missing in read_maps(map_file(run, name))[1]


def test_a_killed_server_loses_no_stored_answer(open_page: Any, run: Run) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom tagseg.run.folder import Run\n"
        "from tagseg.teaching.server import serve_lesson\n"
        "serve_lesson(Run(Path(sys.argv[1])), 0, lambda address: print(address, flush=True))"
    )

    command = [sys.executable, "-c", code, str(run.root)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, encoding="ascii", env=os.environ)
    assert child.stdout is not None
    page = open_page(child.stdout.readline().strip(), True)
    page.keyboard.press("b")
    wait_for(page, "Saved: background", "saved")
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    page.keyboard.press("1")
    wait_for(page, "Not saved yet, retrying", "saved")
    assert [found.meaning for found in answers(run).values()] == ["background"]
    lesson = open_lesson(run)
    assert len(lesson.taught) == 1 and next(iter(answers(run).values())).question not in lesson.clusters.open
