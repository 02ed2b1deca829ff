import time

import pytest

from tagseg.run.decisions import Decision, accepted_masks, decision_of, decisions

from .conftest import build_run

HOSTILE_CLASS = "<script>document.title='taken'</script>"
HOSTILE_CLASSES = (HOSTILE_CLASS, '"><img src=x onerror="document.title=\'taken\'">')
HOSTILE_FILES = (
    "\"><img src=x onerror=document.title='taken'>",
    "' & ünï ✂ %2e%2e {{ 7 * 7 }}",
    "a/b?id=1#c&d=2",
    "</script>",
)


def name(page):
    return page.text_content("#name")


def wait_for(page, text, where="name"):
    page.wait_for_function("([id, text]) => document.getElementById(id).textContent.includes(text)", arg=[where, text])


def shown(page):
    """Return the address of the mask, once it is shown."""
    page.wait_for_selector("#layers[aria-busy=false]")
    return page.get_attribute("#layers", "data-shown")


@pytest.fixture
def page(served, open_page):
    return open_page(served.address)


def test_the_worst_image_is_shown_first_with_its_mask_and_classes(page):
    assert name(page) == "img2" and page.text_content("#score") == "expected IoU 0.10"
    assert page.text_content("#where") == "1 of 4" and page.text_content("#done-text") == "0 of 4 reviewed"
    assert page.eval_on_selector_all("#layers img", "all => all.map(one => one.naturalWidth > 0)") == [True, True]
    assert page.eval_on_selector_all("#classes .label", "all => all.map(one => one.textContent)") == ["cat", "dog"]
    assert page.eval_on_selector_all("#classes .value", "all => all.map(one => one.textContent)") == ["0.10", "0.05"]
    assert page.locator("#strip li").count() == 4
    assert page.get_attribute("#layers .mask", "alt") == "Mask: cat, dog"


def test_keys_accept_reject_and_flag_and_move_on(page, run):
    for key, verdict, sample_id, following in (
        ("a", "accepted", "img2", "img0"), ("r", "rejected", "img0", "img1"), ("f", "flagged", "img1", "img3"),
    ):  # fmt: skip
        assert name(page) == sample_id
        page.keyboard.press(key)
        wait_for(page, following)
        wait_for(page, f"Saved: {sample_id} {verdict}", "saved")
        assert decision_of(run, sample_id) == Decision(verdict)
    assert accepted_masks(run, "img2") is not None
    assert page.text_content("#done-text") == "3 of 4 reviewed"
    assert page.text_content("[data-verdict=open]") == "open 1"
    page.keyboard.press("a")
    wait_for(page, "No open images are left.")
    assert len(decisions(run)) == 4
    page.keyboard.press("a")
    page.keyboard.press("1")
    page.keyboard.press("]")
    page.keyboard.press("z")
    wait_for(page, "img3")
    wait_for(page, "Saved: img3 open", "saved")
    assert decision_of(run, "img3") == Decision()


def test_a_class_is_switched_off_and_on(page, run):
    before = shown(page)
    page.keyboard.press("2")
    wait_for(page, "Saved: img2", "saved")
    assert decision_of(run, "img2") == Decision("open", (2,))
    assert page.get_attribute("#classes li:nth-child(2) button", "aria-pressed") == "false"
    page.wait_for_function("() => document.querySelector('#layers .mask').alt === 'Mask: cat'")
    assert "off=2" in shown(page) != before
    page.click("#classes li:nth-child(2) button")
    page.wait_for_function("() => document.querySelector('#layers .mask').alt === 'Mask: cat, dog'")
    wait_for(page, "Saved: img2", "saved")
    assert decision_of(run, "img2") == Decision()
    page.keyboard.press("7")
    assert name(page) == "img2"


def test_the_threshold_moves_and_the_mask_with_it(page, run):
    pixels = """() => {
        const canvas = Object.assign(document.createElement("canvas"), {width: 64, height: 48});
        const context = canvas.getContext("2d");
        context.drawImage(document.querySelector("#layers .mask"), 0, 0, 64, 48);
        const values = [...context.getImageData(0, 0, 64, 48).data];
        return values.filter((value, index) => index % 4 === 3 && value > 127).length;
    }"""
    before = page.evaluate(pixels)
    for _ in range(6):
        page.keyboard.press("]")
    assert page.text_content("#threshold-text") == "0.80"
    page.wait_for_function("() => document.getElementById('layers').dataset.shown.includes('threshold=0.8')")
    assert page.evaluate(pixels) < before - 50
    wait_for(page, "Saved: img2 open", "saved")
    assert decision_of(run, "img2") == Decision("open", (), 0.8)
    page.keyboard.press("[")
    page.wait_for_function("() => document.getElementById('layers').dataset.shown.includes('threshold=0.75')")
    page.fill("#threshold", "20")
    page.wait_for_function("() => document.getElementById('layers').dataset.shown.includes('threshold=0.2')")
    assert page.evaluate(pixels) > before
    page.keyboard.press("a")
    wait_for(page, "Saved: img2 accepted", "saved")
    assert decision_of(run, "img2") == Decision("accepted", (), 0.2)


def test_moving_undo_and_taking_a_verdict_back(page, run):
    page.keyboard.press("j")
    wait_for(page, "img0")
    page.keyboard.press("ArrowRight")
    wait_for(page, "img1")
    page.keyboard.press("k")
    wait_for(page, "img0")
    page.keyboard.press("ArrowLeft")
    wait_for(page, "img2")
    page.keyboard.press("r")
    wait_for(page, "img0")
    page.keyboard.press("z")
    wait_for(page, "img2")
    wait_for(page, "Saved: img2 open", "saved")
    assert decision_of(run, "img2") == Decision() and page.is_disabled("#undo")
    page.keyboard.press("f")
    wait_for(page, "img0")
    page.keyboard.press("k")
    wait_for(page, "img2")
    page.keyboard.press("1")
    wait_for(page, "Saved: img2 flagged", "saved")
    assert decision_of(run, "img2") == Decision("flagged", (1,)), "a flag stays when the mask is changed"
    page.keyboard.press("f")
    wait_for(page, "Saved: img2 open", "saved")
    assert name(page) == "img2" and page.get_attribute("#flagged", "aria-pressed") == "false"
    page.keyboard.press("a")
    wait_for(page, "Saved: img2 accepted", "saved")
    page.keyboard.press("k")
    wait_for(page, "img2")
    page.keyboard.press("[")
    wait_for(page, "Saved: img2 open", "saved")
    assert decision_of(run, "img2") == Decision("open", (1,), 0.45), "the accepted mask is no longer the one shown"


def test_decisions_survive_a_reload_and_can_be_filtered(page, run):
    page.keyboard.press("r")
    wait_for(page, "Saved: img2 rejected", "saved")
    page.keyboard.press("f")
    wait_for(page, "Saved: img0 flagged", "saved")
    page.reload()
    wait_for(page, "img1")
    assert page.locator("#strip li").count() == 2 and page.text_content("#done-text") == "2 of 4 reviewed"
    page.click("[data-verdict=rejected]")
    wait_for(page, "img2")
    assert page.text_content("#verdict") == "rejected" and page.get_attribute("#rejected", "aria-pressed") == "true"
    page.click("[data-verdict=all]")
    page.wait_for_function("() => document.querySelectorAll('#strip li').length === 4")
    page.click("[data-verdict=accepted]")
    wait_for(page, "No accepted images.")
    assert page.locator("#layers img").count() == 0


def test_pages_of_the_list_join(tmp_path, open_page, monkeypatch, serve):
    run = build_run(tmp_path, names=tuple(f"i{i}" for i in range(7)), scores={})
    monkeypatch.setattr("tagseg.review.server.PAGE", 3)
    served = serve(run)
    page = open_page(served.address)
    assert page.text_content("#range") == "1–3 of 7" and page.is_disabled("#earlier")
    for i in range(1, 4):
        page.keyboard.press("j")
        wait_for(page, f"i{i}")
    assert page.text_content("#range") == "4–6 of 7"
    page.click("#later")
    wait_for(page, "i6")
    assert page.text_content("#range") == "7–7 of 7" and page.is_disabled("#later")
    page.keyboard.press("a")
    wait_for(page, "i0")  # there is no open image after the last one
    page.keyboard.press("j")
    wait_for(page, "i1")
    page.keyboard.press("z")
    wait_for(page, "i6")
    page.keyboard.press("k")
    wait_for(page, "i5")
    page.select_option("#class", "2")
    wait_for(page, "i0")


def test_keys_do_nothing_while_typing_or_if_meant_for_the_browser(page, run):
    page.focus("#class")
    for key in ("a", "r"):
        page.keyboard.press(key)
    page.eval_on_selector("#class", "one => one.blur()")
    press = (
        "([key, held]) => document.body.dispatchEvent(new KeyboardEvent('keydown', {key, [held]: true, bubbles: true}))"
    )
    for pressed in (["a", "ctrlKey"], ["f", "altKey"], ["r", "metaKey"]):
        page.evaluate(press, pressed)
    page.keyboard.press("?")
    assert page.is_visible("#help")
    page.keyboard.press("a")
    page.keyboard.press("Escape")
    assert not page.is_visible("#help")
    page.focus("#opacity")
    page.keyboard.press("ArrowRight")
    assert name(page) == "img2" and page.input_value("#opacity") == "66"
    assert decisions(run) == {}
    page.keyboard.press("r")  # a slider ignores letters
    wait_for(page, "Saved: img2 rejected", "saved")


def test_the_overlay_fades_and_hides(page):
    opacity = "getComputedStyle(document.querySelector('#layers .mask')).opacity"
    page.fill("#opacity", "20")
    assert float(page.evaluate(opacity)) == pytest.approx(0.2)
    page.keyboard.down("h")
    assert not page.is_visible("#layers .mask")
    page.keyboard.up("h")
    assert page.is_visible("#layers .mask")


def test_the_next_image_is_loaded_in_advance(served, open_page):
    page = open_page(served.address)
    page.wait_for_function(
        "() => performance.getEntriesByType('resource').filter(one => one.name.includes('mask?id=img0')).length === 1"
    )
    page.keyboard.press("a")
    wait_for(page, "img0")
    shown(page)
    again = "performance.getEntriesByType('resource').filter(one => one.name.includes('?id=img0&off')).length"
    assert page.evaluate(again) == 1


def test_names_stay_text(tmp_path, open_page, serve):
    files = tuple(one.replace("/", "\u2215") if one.startswith("<") else one for one in HOSTILE_FILES)
    run = build_run(tmp_path, names=files, classes=HOSTILE_CLASSES, scores={})
    served = serve(run)
    source = served.ask("")[2].decode()
    assert source.count("<script") == 1 and source.count("&lt;script&gt;document.title=") >= 1
    page = open_page(served.address)
    for sample_id in files:
        wait_for(page, sample_id)
        shown(page)
        assert name(page) == sample_id and page.locator("#layers img").count() == 2
        assert page.text_content("#classes li:first-child .label") == HOSTILE_CLASS
        page.keyboard.press("a")
        wait_for(page, f"Saved: {sample_id} accepted", "saved")
    assert page.locator("script").count() == 1 and page.locator("[onerror]").count() == 0
    # Counted in one step: the page may still be drawing the next image.
    count = "(css) => document.querySelectorAll(css).length"
    assert page.evaluate(f"() => ({count})('img') - ({count})('#layers img, #strip img')") == 0
    assert page.title() == "Review"
    assert {one.verdict for one in decisions(run).values()} == {"accepted"} and len(decisions(run)) == 4


def test_the_page_obeys_its_policy(served, open_page):
    page = open_page(served.address, forgiving=True)
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img id=x src=x onerror=\"window.taken = 1\">')")
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.taken = 1'}))"
    )
    time.sleep(0.2)
    assert page.evaluate("window.taken") is None


def test_every_control_can_be_reached_and_has_a_name(page):
    unnamed = page.evaluate("""() => {
        const named = (one) => one.getAttribute("aria-label") || one.getAttribute("aria-labelledby")
            || one.labels?.length || one.textContent.trim() || one.hasAttribute("alt");
        const all = [...document.querySelectorAll("button, input, select, progress, img, ol, ul")];
        return all.filter((one) => !named(one)).map((one) => one.outerHTML);
    }""")
    assert unnamed == []
    assert page.get_attribute("#saved", "role") == page.get_attribute("#current", "role") == "status"
    assert "img2" in page.text_content("#current") and "expected IoU 0.10" in page.text_content("#current")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.focus("#strip button")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "accepted":
            break
    page.keyboard.press("Enter")
    wait_for(page, "img0")


@pytest.mark.parametrize("width", [400, 800, 1600])
def test_nothing_overflows_and_the_page_does_not_scroll(page, width):
    page.set_viewport_size({"width": width, "height": 500})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.keyboard.press("j")
    page.keyboard.press("j")
    wait_for(page, "img1")
    assert page.evaluate("scrollY") == 0


def test_the_reason_is_beside_the_trust_and_many_masks_are_accepted_at_once(page, run):
    assert "dog" in page.text_content("#reason")
    page.fill("#above", "5")
    page.click("#accept")
    wait_for(page, "Press Accept again to accept all open masks with an expected IoU of 5 % or more.", "saved")
    assert not decisions(run)
    page.click("#accept")
    wait_for(page, "Accepted 3 masks.", "saved")
    assert sorted(decisions(run)) == ["img0", "img1", "img2"]
    assert page.text_content("[data-verdict=accepted]") == "accepted 3" and name(page) == "img3"


def test_the_image_is_zoomed_and_moved(page):
    def box():
        return page.locator("#layers img").first.bounding_box()

    before = box()
    page.keyboard.press("+")
    assert page.get_attribute("#layers", "data-zoom") == "1.50" and box()["width"] == pytest.approx(
        1.5 * before["width"], abs=0.5
    )
    middle = box()["x"] + box()["width"] / 2
    assert middle == pytest.approx(before["x"] + before["width"] / 2, abs=0.5)
    x, y = before["x"] + before["width"] / 4, before["y"] + before["height"] / 4
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 30, y + 20)
    page.mouse.up()
    assert box()["x"] + box()["width"] / 2 == pytest.approx(middle + 30, abs=0.5)
    page.mouse.move(x, y)
    share = (x - box()["x"]) / box()["width"]
    page.mouse.wheel(0, -200)
    page.wait_for_function("Number(document.getElementById('layers').dataset.zoom) > 2")
    assert (x - box()["x"]) / box()["width"] == pytest.approx(share, abs=0.01), "the spot under the pointer stays there"
    page.mouse.move(x + 5000, y)
    page.keyboard.press("j")
    wait_for(page, "img0")
    shown(page)
    assert page.get_attribute("#layers", "data-zoom") == "1.00" and box() == before


def test_on_a_narrow_screen_nothing_is_cut(page):
    page.set_viewport_size({"width": 400, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
