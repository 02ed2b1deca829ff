"""The teach page in a real headless Chromium: name, split, undo, two windows, and a server that is killed."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tagseg.review.server import listen, make_server
from tagseg.run.folder import Run
from tagseg.run.taught import answers
from tagseg.teaching.lesson import open_lesson
from tagseg.teaching.server import close_classroom, make_lesson_app, open_classroom

TOKEN = "a-token-of-tests"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """Return a headless browser, for one module only because its event loop disturbs other tests."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("no chromium or chromium-browser on this machine")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright, which drives the browser, is missing")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def address(run: Run) -> Iterator[str]:
    """Serve the teach page of a run in a thread."""
    room = open_classroom(open_lesson(run))
    with listen(0) as listener:
        server = make_server(make_lesson_app(room, TOKEN))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/{TOKEN}/"
        server.should_exit = True
        thread.join()
    close_classroom(room)


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Callable[[str], Any]]:
    """Return a function that opens the page in a window; at the end, check for errors."""
    contexts: list[Any] = []
    wrong: list[str] = []

    def open_page(address: str, forgiving: bool = False) -> Any:
        contexts.append(chromium.new_context(viewport={"width": 1200, "height": 800}))
        page = contexts[-1].new_page()
        page.set_default_timeout(60_000)
        if not forgiving:
            page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(address)
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
