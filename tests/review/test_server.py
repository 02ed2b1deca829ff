import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tagseg
from tagseg.masks.make import mask_sample
from tagseg.masks.map_files import map_file
from tagseg.masks.mask_files import mask_file, write_mask
from tagseg.masks.palette import VOID_COLOUR, shown_colours
from tagseg.review import images
from tagseg.review.images import PHOTO_SIDE, THUMB_SIDE
from tagseg.review.server import PAGE, listen
from tagseg.run.decisions import NEUTRAL, Decision, accepted_masks, decision_of, decisions, record_decision

from .conftest import HEIGHT, SETTINGS, TOKEN, WIDTH, build_run, judge, record_of, write_data


def picture(served, path):
    status, _, body = served.ask(path)
    assert status == 200, body
    return Image.open(io.BytesIO(body))


def shares(served, query):
    """Return the shares of an overlay in the colours of class 1, of class 2 and of unsure pixels."""
    pixels = np.array(picture(served, f"mask?{query}").convert("RGBA"))
    painted = pixels[..., 3] > 0
    colours = [*shown_colours(2)[1:], VOID_COLOUR]
    return [float((painted & (pixels[..., :3] == colour).all(2)).mean()) for colour in colours]


def test_the_list_describes_each_image(served):
    found = served.list()
    assert [item["id"] for item in found["items"]] == ["img2", "img0", "img1", "img3"]
    assert (found["total"], found["first"]) == (4, 0)
    assert found["counts"] == {"open": 4, "accepted": 0, "rejected": 0, "flagged": 0, "all": 4}
    assert found["items"][0] == {
        "place": 0, "id": "img2", "height": HEIGHT, "width": WIDTH, "tags": [1, 2], "score": 0.1,
        "scores": {"1": 0.1, "2": 0.05}, "verdict": "open", "off": [], "threshold": NEUTRAL, "parts": [],
        "reason": found["items"][0]["reason"],
    }  # fmt: skip
    assert found["items"][0]["reason"] and found["items"][3]["reason"] == ""
    assert found["items"][3]["score"] is None


def test_sizes_of_pictures(tmp_path, serve):
    run = build_run(tmp_path, names=("large",), scores={})
    Image.new("RGB", (3000, 1500), "red").save(tmp_path / "data" / "large.png")
    served = serve(run)
    assert picture(served, "photo?id=large").size == (PHOTO_SIDE, PHOTO_SIDE // 2)
    assert picture(served, "thumb?id=large").size == (THUMB_SIDE, THUMB_SIDE // 2)
    assert picture(served, "mask?id=large").size == (PHOTO_SIDE, round(PHOTO_SIDE * HEIGHT / WIDTH))


def test_a_mask_changes_with_classes_and_threshold(served):
    left, right, unsure = shares(served, "id=img0")
    assert left > 0.3 and right == pytest.approx(left, abs=0.05) and unsure > 0
    assert shares(served, "id=img0&off=1")[0] == 0 and shares(served, "id=img0&off=1,2") == [0, 0, 0]
    assert shares(served, "id=img0&threshold=0.8")[0] < left - 0.05
    assert shares(served, "id=img0&off=2&threshold=0.2")[0] > left + 0.05


def test_undecided_images_show_the_runs_own_masks(run, serve):
    # Masks that cannot be made from the maps.
    own = np.full((HEIGHT, WIDTH), 2, np.uint8)
    for folder in (run.masks, run.decided_masks):
        write_mask(mask_file(folder, "img0"), own)
    served = serve(run)
    assert shares(served, "id=img0")[1] == 1
    assert served.decide("img0", "accepted")[0] == 200
    assert (accepted_masks(run, "img0")[0] == own).all()
    assert shares(served, "id=img0")[1] == 1, "the accepted mask"
    assert shares(served, "id=img0&threshold=0.6")[1] < 0.5


def test_masks_are_accepted_as_shown(served, run):
    assert served.decide("img1", "accepted", (2,), 0.3)[0] == 200
    sample = read_sample(run, "img1")
    expected = mask_sample(run, sample, (HEIGHT, WIDTH), SETTINGS, Decision("open", (2,), 0.3))
    for kept, mask in zip(accepted_masks(run, "img1"), expected, strict=True):
        assert (kept == mask).all() and 2 not in mask and 1 in mask


def read_sample(run, sample_id):
    from tagseg.review.queue import read_queue

    queue = read_queue(run)
    return queue.items[queue.places[sample_id]].sample


def test_accepted_masks_stay_the_same_if_the_maps_change(run, serve):
    kept = np.full((HEIGHT, WIDTH), 1, np.uint8)
    record_decision(run, "img0", Decision("accepted", (2,), 0.4), (kept, kept))
    served = serve(run)
    assert shares(served, "id=img0&off=2&threshold=0.4")[0] == 1
    assert shares(served, "id=img0")[0] < 0.6, "other classes and another threshold"
    assert served.decide("img0", "accepted", (2,), 0.4)[0] == 200
    assert (accepted_masks(run, "img0")[0] == kept).all(), "accepting it again changes nothing"


def test_a_rejected_image_shows_the_mask_it_would_have(run, serve):
    record_decision(run, "img0", Decision("rejected"))
    void = np.full((HEIGHT, WIDTH), 255, np.uint8)
    for folder in (run.masks, run.decided_masks):
        write_mask(mask_file(folder, "img0"), void)
    served = serve(run)
    assert shares(served, "id=img0")[0] > 0.3
    assert served.list(verdict="rejected")["items"][0]["id"] == "img0"


def test_decisions_are_stored_immediately_and_counted(served, run):
    for verdict in ("rejected", "flagged", "accepted", "open"):
        status, answer = served.decide("img3", verdict, (1,), 0.35)
        assert status == 200 and answer["item"]["verdict"] == verdict and answer["item"]["off"] == [1]
        assert answer["counts"][verdict] == (4 if verdict == "open" else 1)
        assert decision_of(run, "img3") == Decision(verdict, (1,), 0.35)
        assert [item["id"] for item in served.list(verdict=verdict)["items"]][-1] == "img3"


def test_reopening_the_page_shows_decisions_of_others(served, run):
    record_decision(run, "img0", Decision("flagged"))
    assert served.list()["counts"]["flagged"] == 0
    assert served.ask("")[0] == 200
    assert served.list()["counts"]["flagged"] == 1


def test_files_that_cannot_be_read_are_named(served, run, tmp_path):
    (tmp_path / "data" / "img0.png").write_bytes(b"no image")
    map_file(run, "img1").unlink()
    mask_file(run.masks, "img2").unlink()
    for path, message in (("photo?id=img0", "img0.png"), ("mask?id=img1&off=1", "maps"), ("mask?id=img2", "img2.png")):
        status, _, body = served.ask(path)
        assert status == 409 and message in json.loads(body)["error"]
    run.review.mkdir()
    run.decisions_file.mkdir()
    status, answer = served.decide("img3", "rejected")
    assert status == 409 and "decisions.sqlite: cannot be read or written" in answer["error"]
    assert served.list()["counts"]["rejected"] == 0, "a decision that was not stored is not shown"


def test_fifty_thousand_images_come_in_pages_and_thumbnails_on_request(run, monkeypatch, serve):
    decoded = []
    read = images.read_image
    monkeypatch.setattr(images, "read_image", lambda path, *rest: decoded.append(path) or read(path, *rest))
    photo = run.root.parent / "data" / "img0.png"
    write_data(run, [record_of(f"{i:05}", photo, (1 + i % 2,)) for i in range(50_000)])
    judge(run, {"49999": 0.01})
    served = serve(run)
    status, _, body = served.ask("list")
    assert status == 200 and len(body) < 200 * PAGE and len(served.ask("")[2]) < 100_000
    found = served.list(count=5000)
    assert len(found["items"]) == PAGE and found["total"] == 50_000 and found["items"][0]["id"] == "49999"
    last = served.list(until=50_000, count=2)
    assert [item["place"] for item in last["items"]] == [49_998, 49_999] and last["first"] == 49_998
    assert decoded == [], "no picture is made before it is requested"
    for _ in range(2):
        assert picture(served, "thumb?id=00007").size == (WIDTH, HEIGHT)
    assert decoded == [photo], "once"


def test_ports_are_checked():
    with pytest.raises(ValueError, match="--port must be 0 or more and at most 65535, got 70000"):
        listen(70_000)
    with (
        listen(0) as taken,
        pytest.raises(ValueError, match=r"--port \d+: cannot be used \(.*\); choose another, or 0"),
    ):
        listen(taken.getsockname()[1])


@pytest.fixture
def start(run):
    """Return a function that starts `tagseg review` as a user does, and returns the process and the printed address."""
    started = []

    def start():
        environment = os.environ | {"PYTHONPATH": str(Path(tagseg.__file__).parents[1]), "COLUMNS": "60"}
        command = [sys.executable, "-m", "tagseg", "review", str(run.root), "--no-browser"]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        line = process.stdout.readline()
        assert line.startswith("Review: http://127.0.0.1:"), line
        return process, line.split()[1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_decisions_survive_a_killed_server_and_ctrl_c_stops_it_cleanly(run, start, open_page):
    first, address = start()
    page = open_page(address, forgiving=True)
    page.keyboard.press("r")
    page.wait_for_function("() => document.getElementById('saved').textContent.startsWith('Saved: img2')")
    first.kill()
    first.wait()
    assert decisions(run) == {"img2": Decision("rejected")}
    # A decision made while there is no server is not lost silently.
    page.keyboard.press("f")
    page.wait_for_selector("#saved.failed")
    assert "Not saved yet (1 decision), retrying" in page.text_content("#saved")
    second, again = start()
    assert again != address
    page = open_page(again)
    assert page.text_content("#done-text") == "1 of 4 reviewed" and page.text_content("#name") == "img0"
    page.click("text=rejected")
    page.wait_for_function("() => document.getElementById('name').textContent === 'img2'")
    page.wait_for_load_state("networkidle")  # pictures that the page fetches ahead
    second.send_signal(signal.SIGINT)
    said, complained = second.communicate(timeout=60)
    assert (second.returncode, complained) == (0, "") and said.endswith("Stopped.\n")


def test_masks_above_an_expected_iou_are_accepted_at_once(served, run):
    scores = {item["id"]: item["score"] for item in served.list()["items"]}
    above = sorted(score for score in scores.values() if score is not None)[1]
    status, done = served.post(json.dumps({"above": above}), "accept")
    assert status == 200, done
    wanted = {name for name, score in scores.items() if score is not None and score >= above}
    assert done["accepted"] == len(wanted) == done["counts"]["accepted"]
    assert {name for name, one in decisions(run).items() if one.verdict == "accepted"} == wanted
    assert served.post(json.dumps({"above": above}), "accept")[1]["accepted"] == 0
    status, done = served.post(json.dumps({"above": "all"}), "accept")
    assert status == 400 and "expected a number from 0 to 1" in done["error"]


def test_a_thumbnail_shows_the_mask(tmp_path, serve):
    run = build_run(tmp_path, names=("img",), scores={})
    served = serve(run)
    before = np.array(picture(served, "thumb?id=img"), int)
    for file in run.masks.glob("*.png"):
        file.unlink()
    after = np.array(picture(serve(run), "thumb?id=img"), int)
    assert np.abs(before - after).max() > 60


@pytest.fixture
def with_network(run, monkeypatch):
    """Return a run with a segmentation network, which sees nothing but the last of the labels it is asked about."""
    manifest = json.loads(run.manifest_file.read_text())
    manifest["stages"]["segment"] = manifest["stages"]["masks"]
    run.manifest_file.write_text(json.dumps(manifest))

    def labels(run, image, labels, size):
        return np.full(size, labels[-1], np.uint8)

    monkeypatch.setattr("tagseg.review.images.network_labels", labels)
    return run


def test_the_networks_mask_is_shown_and_accepted_in_place_of_the_runs(with_network, serve):
    run, served = with_network, serve(with_network)
    assert shares(served, "id=img0&network=1") != shares(served, "id=img0")
    body = {"id": "img0", "verdict": "accepted", "off": [2], "threshold": 0.5, "network": True}
    assert served.post(json.dumps(body))[0] == 200
    decided, sure = accepted_masks(run, "img0")
    assert (decided == 1).all() and (sure == 1).all()
    assert shares(served, "id=img0&off=2")[0] == 1, "what was accepted"
    assert served.decide("img0", "open")[0] == 200
    assert shares(served, "id=img0")[0] < 0.6, "taken back"


def test_only_an_accepted_mask_can_be_the_networks(with_network, served):
    for values in ({"verdict": "open", "network": True}, {"verdict": "accepted", "network": 1}):
        status, told = served.post(json.dumps({"id": "img0", "off": [], "threshold": 0.5} | values))
        assert status == 400 and "expected true for an accepted mask, or false" in told["error"]
    assert decisions(with_network) == {}


def test_without_a_network_its_mask_is_refused_in_words(served, run):
    status, _, body = served.ask("mask?id=img0&network=1")
    assert status == 409 and "stage segment has not finished" in json.loads(body)["error"]


def test_in_the_page_a_key_shows_the_networks_mask_and_accepting_keeps_it(with_network, serve, open_page):
    page = open_page(serve(with_network).address)
    page.wait_for_selector("#layers[aria-busy=false]")
    page.keyboard.press("n")
    page.wait_for_function("() => document.getElementById('layers').dataset.shown.includes('network=1')")
    assert page.get_attribute("#network", "aria-pressed") == "true"
    page.keyboard.press("a")
    page.wait_for_function("() => document.getElementById('saved').textContent === 'Saved: img2 accepted'")
    assert (accepted_masks(with_network, "img2")[0] == 2).all()
    page.keyboard.press("z")
    page.wait_for_function("() => document.getElementById('saved').textContent === 'Saved: img2 open'")
    assert accepted_masks(with_network, "img2") is None
    page.wait_for_function("() => document.getElementById('layers').dataset.shown.includes('network=1')")
    page.keyboard.press("n")
    page.wait_for_function("() => !document.getElementById('layers').dataset.shown.includes('network=1')")
    assert page.get_attribute("#network", "aria-pressed") == "false"


def test_a_review_folder_that_cannot_be_written_is_explained(run, serve):
    served = serve(run)
    run.review.write_text("in the way")
    status, answer = served.decide("img0", "rejected")
    assert status == 409 and "review" in answer["error"]


def test_a_request_that_its_browser_gives_up_leaves_no_traceback(served, capfd, caplog):
    lines = [
        f"POST /{TOKEN}/decide HTTP/1.1", f"host: 127.0.0.1:{served.port}", "content-type: application/json",
        f"origin: http://127.0.0.1:{served.port}", "content-length: 100", "", "{",
    ]  # fmt: skip
    with socket.create_connection(("127.0.0.1", served.port)) as browser:
        browser.sendall("\r\n".join(lines).encode())
        time.sleep(0.1)
    time.sleep(0.2)
    assert served.list()["counts"]["open"] == 4
    assert "Traceback" not in "".join(capfd.readouterr()) + caplog.text and not caplog.records
