import dataclasses
import json
import re
import shutil

import pytest
from PIL import Image

from tagseg.errors import RunError
from tagseg.report.page import duration, memory, report
from tagseg.settings.data import DataSettings
from tagseg.settings.report import ReportSettings
from tagseg.settings.settings import Settings
from tagseg.settings.train import TrainSettings

HOSTILE_CLASS = "<script>alert(1)</script>"
HOSTILE_FILE = '"><img src=x onerror=alert(2)>'
HOSTILE_TEXT = "</title></style><script>document.title='taken'</script>{{ 7 * 7 }}"


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_the_page_holds_the_figures(tmp_path, make_run, page_of):
    run = make_run(tmp_path)
    page = page_of(run)
    for text in ("48.7%", "51.2%", "3.1% of the pixels are", "the 4 training images with true masks", "cat, dog"):
        assert text in page.text
    assert "the 2 validation images with true masks" in page.text
    assert "4 for training (using only their tags) and 2 for validation" in page.text
    assert "1 min 1 s" in page.text and "2.0 GB" in page.text and "100 MB" in page.text
    assert "4 min 7 s" in page.text, "the time of all stages"
    assert f"tagseg predict {run.root} IMAGES --out DIR" in page.text and f"tagseg review {run.root}" in page.text
    assert "self-training" not in page.text
    assert "from scratch" not in page.text
    assert run.report_file.exists()


def test_absent_classes_are_dashes_and_bars_have_their_iou(tmp_path, make_run, page_of):
    page = page_of(make_run(tmp_path))
    absent = [a for a in page.all("abbr") if "not in the true masks" in a.get("title", "")]
    assert len(absent) == 2, "dog, in both columns"
    shares = [attributes["style"] for attributes in page.all("span", class_="bar one")]
    assert shares == ["--share: 90.0%", "--share: 25.0%", "--share: 48.7%"]


def test_rows_show_every_kind_of_picture_with_a_description(tmp_path, make_run, page_of):
    page = page_of(make_run(tmp_path))
    labels = [attributes["aria-label"] for attributes in page.all("svg", class_="picture")]
    assert len(labels) == 4 * 5 + 2 * 3
    assert "Image img1" in labels and "Map of img1: cat" in labels
    assert "Pseudo-mask of img1: background 79%, cat 17%, unsure 4%" in labels
    assert "Prediction of img1: background 83%, cat 17%" in labels
    assert "True mask of img1: background 75%, cat 25%" in labels
    assert (
        "4 of 4 training images, evenly spaced over the list of the training images that have true masks" in page.text
    )


def test_the_page_loads_nothing_else(tmp_path, make_run):
    html = report(make_run(tmp_path)).path.read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|//cdn", html)
    assert not re.search(r"""\b(?:src|href|srcset|action)\s*=\s*(?!"(?:data:image/(?:png|jpeg);base64,|\#))""", html)
    assert set(re.findall(r"url\((.)", html)) == {"#"}
    assert "default-src 'none'" in html


def test_hostile_names_stay_text(tmp_path, make_run, page_of):
    run = make_run(tmp_path, classes=(HOSTILE_CLASS, "dog"), first_name=HOSTILE_FILE)
    settings = dataclasses.replace(run.settings(), report=ReportSettings(title=HOSTILE_TEXT))
    run.settings_file.write_text(settings.to_toml())
    change(run.data_file, notes=[HOSTILE_TEXT], broken=[[HOSTILE_FILE, HOSTILE_TEXT]])
    page = page_of(run)
    assert len(page.all("script")) == 1, "the page's own"
    assert page.all("img") == []
    assert [a for _, a in page.elements if any(name.startswith("on") for name in a)] == []
    assert page.text.count(HOSTILE_CLASS) >= 3 and HOSTILE_FILE in page.text
    assert page.text.count(HOSTILE_TEXT) >= 3, "title, note and reason, with nothing expanded"
    assert any(HOSTILE_FILE in attributes["aria-label"] for attributes in page.all("svg", class_="picture"))


def test_without_true_masks_the_page_says_so_instead_of_showing_figures(tmp_path, make_run, page_of):
    page = page_of(make_run(tmp_path, truth=False))
    assert "No training image has a true mask" in page.text and "This data set has no true masks" in page.text
    assert page.all("span", class_="bar one") == [] and "IoU of each class" not in page.text
    assert "true" not in [word for a in page.all("svg", class_="picture") for word in a["aria-label"].lower().split()]
    assert "Training images" in page.text and len(page.all("svg", class_="picture")) == 4 * 4 + 2 * 2


def test_images_that_calibration_used_are_counted(tmp_path, make_run, page_of):
    run = make_run(tmp_path)
    change(run.evaluation_file, calibrated=7)
    left_out = "7 images are left out because calibration used their true masks."
    assert f"training images with true masks. {left_out}" in page_of(run).text
    change(run.evaluation_file, pseudo_masks=None)
    assert f"No training image has a true mask to compare with. {left_out}" in page_of(run).text


def test_without_validation_images_the_segmenter_is_not_measured(tmp_path, make_run, page_of):
    page = page_of(make_run(tmp_path, val=0))
    assert "No validation image has a true mask" in page.text and "48.7%" in page.text
    assert page.all("span", class_="bar two") == [] and "Validation images" not in page.text


def test_one_class(tmp_path, make_run, page_of):
    page = page_of(make_run(tmp_path, classes=("cat",)))
    assert "cat; everything else is background" in page.text
    assert len(page.all("span", class_="bar one")) == 2, "background and mean; the class itself is absent"


def test_the_contrast_loss_is_drawn_only_if_the_run_used_it(tmp_path, make_run, page_of):
    page = page_of(make_run(tmp_path / "with"))
    labels = [a["aria-label"] for a in page.all("svg", role="img") if "over epochs" in a["aria-label"]]
    assert labels[1] == "Classifier: contrast loss over epochs. contrast: 3.25 in the last epoch. "
    assert labels[2] == "Segmenter: loss over epochs. loss: 0.875 in the last epoch. "
    page = page_of(make_run(tmp_path / "without", contrast=False))
    assert "Classifier: losses" in page.text and "contrast loss" not in page.text


def test_without_predictions_histories_or_rows_the_page_is_complete(tmp_path, make_run, page_of):
    run = make_run(tmp_path)
    for folder in (run.predictions, run.network, run.segmenter):
        shutil.rmtree(folder)
    page = page_of(run)
    assert "Training images" in page.text and "train for more epochs" not in page.text
    assert not any(a["aria-label"].startswith("Prediction") for a in page.all("svg", class_="picture"))
    settings = dataclasses.replace(run.settings(), report=ReportSettings(examples=0))
    run.settings_file.write_text(settings.to_toml())
    page = page_of(run)
    assert page.all("svg", class_="picture") == [] and "Pictures" not in page.text


def test_a_banner_mentions_training_from_scratch(tmp_path, make_run, page_of):
    settings = Settings(data=DataSettings(min_images=1), train=TrainSettings(weights="random"))
    page = page_of(make_run(tmp_path, settings=settings))
    assert "Trained from scratch" in page.text and "(default timm)" in page.text


def test_a_run_that_is_not_evaluated_or_contradicts_itself_is_refused(tmp_path, make_run):
    run = make_run(tmp_path)
    data = json.loads(run.data_file.read_text())
    change(run.data_file, classes=["cat", "dog", "cow"])
    with pytest.raises(RunError, match=r"pseudo_masks has 3 IoUs, expected 4"):
        report(run)
    data["samples"][0]["id"] = "vanished"
    run.data_file.write_text(json.dumps(data))
    shutil.copy(run.predictions / "img1.png", run.predictions / "vanished.png")
    with pytest.raises(RunError, match="no longer has the image vanished"):
        report(run)
    change(run.manifest_file, stages={})
    with pytest.raises(RunError, match="stage evaluate has not finished"):
        report(run)
    assert not run.report_file.exists()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (9.6, "9.6 s"), (59.4, "59 s"), (61.0, "1 min 1 s"), (7384.0, "2 h 3 min")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_memory_switches_to_gigabytes():
    assert (memory(1023.0), memory(1536.0)) == ("1023 MB", "1.5 GB")


def test_in_a_browser_hostile_names_do_not_run_and_the_controls_work(tmp_path, make_run, dom_in_chromium):
    run = make_run(tmp_path, classes=(HOSTILE_CLASS, "dog"), first_name=HOSTILE_FILE)
    settings = dataclasses.replace(run.settings(), report=ReportSettings(title="Tags & " + HOSTILE_TEXT))
    run.settings_file.write_text(settings.to_toml())
    path = report(run).path
    page = dom_in_chromium(path)
    assert len(page.all("script")) == 1 and page.all("img") == []
    assert "Tags & </title>" in page.text and not page.text.startswith("taken")
    # The script ran, so its checksum is the one in the policy.
    assert len(page.all("button", class_="zoom")) == len(page.all("svg", class_="picture")) == 26
    assert all("hidden" not in a for a in page.all("button", id="theme") + page.all("label", id="slider"))
    assert page.all("html", style="--overlay: 0.65;")
    html = re.sub(r"<meta http-equiv[^>]*>", "", path.read_text(encoding="utf-8"))
    clicks = """<script>
      document.querySelectorAll(".zoom")[1].click();
      document.getElementById("viewer").dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight"}));
      const slider = document.getElementById("opacity");
      slider.value = 20; slider.dispatchEvent(new Event("input"));
      document.documentElement.dataset.theme = "light"; document.getElementById("theme").click();
    </script></body>"""
    driven = tmp_path / "driven.html"
    driven.write_text(html.replace("</body>", clicks), encoding="utf-8")
    page = dom_in_chromium(driven)
    assert page.all("html", style="--overlay: 0.2;") and page.all("html", **{"data-theme": "dark"})
    assert "open" in page.all("dialog", id="viewer")[0]
    assert f"Pseudo-mask of {HOSTILE_FILE}: background 79%" in page.text


def test_after_self_training_its_masks_are_shown_and_scored(tmp_path, make_run, page_of):
    run = make_run(tmp_path)
    settings = run.settings()
    settings = dataclasses.replace(settings, segment=dataclasses.replace(settings.segment, rounds=2))
    run.settings_file.write_text(settings.to_toml())
    score = {"miou": 0.611, "iou": [0.9, 0.3, None], "images": 4, "split": "train", "unsure_share": 0.02}
    change(run.evaluation_file, self_trained=score)
    for file in run.masks.glob("*.png"):
        later = run.round(1).masks / file.name
        later.parent.mkdir(parents=True, exist_ok=True)
        Image.new("P", (32, 24), 0).save(later)
    page = page_of(run)
    assert "61.1%" in page.text and "after self-training (48.7% before)" in page.text
    assert "The pseudo-mask is made by self-training, which starts from the maps." in page.text
    assert "Pseudo-mask of img1: background 100%" in [one["aria-label"] for one in page.all("svg", class_="picture")]
