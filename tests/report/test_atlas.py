import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from tagseg.errors import RunError
from tagseg.pipeline import fit_until
from tagseg.rca.train import load_network
from tagseg.report.atlas import atlas
from tagseg.report.bank_view import load_memory
from tagseg.run.folder import Run
from tagseg.settings.data import DataSettings
from tagseg.settings.localise import LocaliseSettings
from tagseg.settings.rca import RcaSettings
from tagseg.settings.settings import Settings
from tagseg.settings.train import TrainSettings
from tagseg.training.checkpoint import load_tensors, save_tensors

HOSTILE_CLASS = "<script>alert(1)</script>"
HOSTILE_FILE = '"><img src=x onerror=alert(2)>{{ 7 * 7 }}'
CPU = torch.device("cpu")
SETTINGS = Settings(
    device="cpu",
    workers=0,
    data=DataSettings(min_images=1),
    train=TrainSettings(
        backbone="test_resnet", weights="random", neck=8, epochs=1, batch=4, crop=33, freeze_stride=0, lr=0.01
    ),
    rca=RcaSettings(slots=6, prototypes=2, confidence=0.0, background_threshold=0.95),
    localise=LocaliseSettings(max_side=64),
)


def train_run(folder, settings=SETTINGS, classes=("green", "red"), first_name="0"):
    """Return a run trained on nine noisy pictures, red or green, the last one both; new.png is next to it."""
    (folder / "data").mkdir(parents=True)
    random = np.random.default_rng(0)
    rows = ["image,tags"]
    for i in range(9):
        tags = (0, 1) if i == 8 else (i % 2,)
        pixels = random.integers(0, 128, (56, 64, 3))
        for tag in tags:
            pixels[10:40, 20 * tag : 20 * tag + 30, tag] += 127
        name = first_name if i == 0 else str(i)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "data" / f"{name}.png")
        row = [f"{name}.png", "|".join(classes[tag] for tag in tags)]
        rows.append(",".join('"' + cell.replace('"', '""') + '"' for cell in row))
    (folder / "data" / "tags.csv").write_text("\n".join(rows) + "\n")
    Image.fromarray(pixels.astype(np.uint8)).resize((320, 280)).save(folder / "new.png")
    fit_until(folder / "data", folder / "run", "train", settings)
    return Run(folder / "run")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train_run(tmp_path_factory.mktemp("atlas"))


@pytest.fixture
def page_of(tmp_path, read_html):
    def page_of(run, images=(), **options):
        path = atlas(run.root, images, out=tmp_path / "page.html", device="cpu", force=True, **options).path
        return read_html(path.read_text(encoding="utf-8"))

    return page_of


def test_the_page_shows_what_the_bank_holds(run, page_of):
    page = page_of(run)
    bank, _ = load_tensors(run.network / "bank.safetensors")
    filled = bank["filled"].tolist()
    network, _ = load_network(run.network, CPU)
    for entry in range(3):
        count = int(network.exists[entry].sum())
        assert f"{filled[entry]} of 6 slots filled, {count} prototype" in page.text
        assert page.all("section", id=f"entry-{entry}") and page.all("a", href=f"#entry-{entry}")
    assert "of 9 training images" in page.text and "No true mask was used" in page.text
    names = [a["alt"] for a in page.all("img")]
    assert any(name.startswith("Region of red in ") for name in names)
    assert any(name.startswith("Region of background in ") for name in names)
    assert "tag: red" in page.text and "Your image" not in page.text
    assert "This run makes its maps and masks from attention." in page.text


def test_per_class_limits_the_images_searched(run, page_of):
    # The first and the last image of every class: 0 and 8 for green, 1 and 8 for red.
    assert "of 3 training images" in page_of(run, per_class=2).text


def test_the_page_is_self_contained(run, tmp_path):
    path = atlas(run.root, [run.root.parent / "new.png"], out=tmp_path / "a.html", device="cpu").path
    html = path.read_text(encoding="utf-8")
    assert set(re.findall(r'(?:src|href)="([^#"][^:"]*:)', html)) == {"data:"}
    assert "http://" not in html and "https://" not in html and "@import" not in html and "url(" not in html
    assert "default-src 'none'" in html
    assert not list(tmp_path.glob(".writing-*"))


def test_crops_are_small_and_of_real_photos(run, page_of):
    pictures = page_of(run).all("img")
    assert len(pictures) >= 6
    for attributes in pictures:
        assert attributes["src"].startswith("data:image/jpeg;base64,") and attributes["alt"]
        assert max(int(attributes["width"]), int(attributes["height"])) == 160


def test_a_new_image_shows_what_its_regions_attend_to(run, page_of):
    page = page_of(run, [run.root.parent / "new.png"])
    assert "Your image: what each region resembles" in page.text and "new.png" in page.text
    (whole,) = page.all("svg", class_="picture")
    regions = len(page.all("circle", class_="pin"))
    assert regions >= 1 and whole["aria-label"].startswith("new.png with its regions outlined: 1 ")
    bars = page.all("ul", class_="bars")
    assert [a["aria-label"] for a in bars] == [f"Attention of region {i + 1}" for i in range(regions)]
    shares = [
        float(re.match(r"--share: ([\d.]+)%", a["style"])[1]) for a in page.all("span") if "; --c" in a.get("style", "")
    ]
    assert sum(shares) == pytest.approx(100 * regions, abs=0.2 * regions), "100% in total for every region"
    assert len([a for a in page.all("img") if "of new.png" in a["alt"]]) == regions


def test_there_are_prototypes_without_aggregation_too(tmp_path, page_of):
    settings = dataclasses.replace(SETTINGS, rca=dataclasses.replace(SETTINGS.rca, aggregation=False))
    run = train_run(tmp_path, settings)
    network, _ = load_network(run.network, CPU)
    assert network.exists.any()
    memory = load_memory(run, network)
    bank, _ = load_tensors(run.network / "bank.safetensors")
    assert memory.exists.any(1).tolist() == (bank["filled"] > 0).tolist()
    assert torch.equal(memory.share.sum(1).round(decimals=4), memory.exists.any(1).float())
    torch.testing.assert_close(memory.prototypes.norm(dim=2), memory.exists.float())
    page = page_of(run, [tmp_path / "new.png"])
    assert "trained without aggregation: attention makes no maps" in page.text and page.all("circle", class_="pin")


@pytest.mark.parametrize(
    ("rca", "reason"),
    [
        ({"contrast": False, "aggregation": False}, r"train with --rca.contrast or --rca.aggregation"),
        ({"confidence": 0.99}, r"no region was ever confident enough to enter it; .* --rca.confidence below 0.99"),
    ],
)
def test_an_empty_bank_is_refused_with_advice(rca, reason, tmp_path):
    settings = dataclasses.replace(SETTINGS, rca=dataclasses.replace(SETTINGS.rca, **rca))
    run = train_run(tmp_path, settings)
    with pytest.raises(ValueError, match=rf"bank.safetensors: the bank is empty.*{reason}"):
        atlas(run.root, device="cpu")
    assert not (run.root / "atlas.html").exists()


def test_wrong_arguments_are_named(run, tmp_path):
    with pytest.raises(ValueError, match="--per-class must be 1 or more, got 0"):
        atlas(run.root, per_class=0)
    with pytest.raises(ValueError, match=r"none\.jpg: no such file"):
        atlas(run.root, [tmp_path / "none.jpg"])
    with pytest.raises(RunError, match="not a run folder"):
        atlas(tmp_path)
    (tmp_path / "there.html").write_text("mine")
    with pytest.raises(RunError, match=r"there\.html: exists; choose another --out or --force"):
        atlas(run.root, out=tmp_path / "there.html")
    assert (tmp_path / "there.html").read_text() == "mine"
    untrained = tmp_path / "run"
    untrained.mkdir()
    (untrained / "settings.toml").write_text(SETTINGS.to_toml())
    (untrained / "manifest.json").write_text(json.dumps({"tagseg": "1", "data": str(tmp_path), "stages": {}}))
    with pytest.raises(RunError, match="stage train has not finished; run `tagseg train"):
        atlas(untrained)


def test_a_class_without_slots_is_shown_as_empty(run, tmp_path, page_of):
    tensors, about = load_tensors(run.network / "network.safetensors")
    bank, bank_about = load_tensors(run.network / "bank.safetensors")
    copy = Run(tmp_path / "copy")
    for name in ("settings.toml", "manifest.json", "data.json"):
        copy.root.mkdir(exist_ok=True)
        (copy.root / name).write_bytes((run.root / name).read_bytes())
    tensors["exists"][1], bank["filled"][1] = False, 0
    save_tensors(copy.network / "network.safetensors", tensors, about)
    save_tensors(copy.network / "bank.safetensors", bank, bank_about)
    page = page_of(copy, [run.root.parent / "new.png"])
    assert "0 of 6 slots filled, 0 prototypes. The bank has no entry for this class: no region was" in page.text
    assert not any(a["alt"].startswith("Region of green") for a in page.all("img"))


def test_hostile_names_stay_text_in_a_browser(tmp_path, dom_in_chromium, read_html):
    run = train_run(tmp_path, classes=(HOSTILE_CLASS, "red"), first_name=HOSTILE_FILE)
    hostile = tmp_path / f"{HOSTILE_FILE}.png"
    (tmp_path / "new.png").rename(hostile)
    path = atlas(run.root, [hostile], device="cpu").path
    assert path == run.root / "atlas.html"
    page = read_html(path.read_text(encoding="utf-8"))
    assert len(page.all("script")) == 1 and all(a["src"].startswith("data:") for a in page.all("img"))
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert page.text.count(HOSTILE_CLASS) >= 5 and HOSTILE_FILE in page.text, "with nothing expanded"
    shown = dom_in_chromium(path)
    assert len(shown.all("script")) == 1 and HOSTILE_CLASS in shown.text
    assert len(shown.all("img")) == len(page.all("img")) and not shown.all("img", src="x")
    # The script ran: the theme can be switched and the new image can be enlarged.
    assert all("hidden" not in a for a in shown.all("button", id="theme"))
    assert len(shown.all("button", class_="zoom")) == 1
