"""A run as it is before the report stage, and pages as a browser reads them."""

import csv
import json
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from tagseg.data.read import read_dataset
from tagseg.masks.palette import png_palette
from tagseg.report.page import report
from tagseg.run.folder import Run
from tagseg.settings.data import DataSettings
from tagseg.settings.settings import Settings

HEIGHT, WIDTH = 24, 32


@pytest.fixture
def make_run():
    """Return the function that builds runs."""
    return build_run


def save_mask(path, mask):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(mask)
    image.putpalette(png_palette())
    image.save(path)


def make_data(root, classes, truth, val, first_name):
    """Write a folder data set of four training images and `val` validation images."""
    (root / "images").mkdir(parents=True)
    rows = (
        [(first_name, "train")] + [(f"img{i}", "train") for i in (2, 3, 4)] + [(f"val{i}", "val") for i in range(val)]
    )
    with (root / "tags.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "tags", "split"])
        for index, (name, split) in enumerate(rows):
            writer.writerow([f"{name}.png", classes[index % len(classes)], split])
            pixels = np.random.default_rng(index).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "images" / f"{name}.png")
            if truth:
                mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
                mask[:12, :16] = 1 + index % len(classes)
                save_mask(root / "masks" / f"{name}.png", mask)
    (root / "classes.txt").write_text("\n".join(classes) + "\n")


def make_outputs(run, records, predicted):
    """Write the maps, masks and predictions that the stages would have written."""
    for record in records:
        mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
        tags = record["tags"] or [1]
        mask[4:12, 4:20], mask[12:14, 4:20] = tags[0], 255
        if record["split"] == "train":
            save_mask(run.masks / f"{record['id']}.png", mask)
            path = run.maps / f"{record['id']}.npz"
            path.parent.mkdir(parents=True, exist_ok=True)
            maps = np.linspace(0, 255, len(tags) * 48).reshape(len(tags), 6, 8).astype(np.uint8)
            np.savez_compressed(path, maps=maps, classes=np.array(tags))
        if predicted:
            save_mask(run.predictions / f"{record['id']}.png", np.where(mask == 255, 0, mask).astype(np.uint8))


def build_run(folder, classes=("cat", "dog"), truth=True, val=2, first_name="img1", settings=None, contrast=True):
    """Return a run as it is before the report stage, with made-up figures."""
    make_data(folder / "data", classes, truth, val, first_name)
    settings = settings or Settings(data=DataSettings(min_images=1))
    dataset = read_dataset(folder / "data", settings.data)
    run = Run(folder / "run")
    run.root.mkdir()
    run.settings_file.write_text(settings.to_toml())
    stages = {
        name: {"seconds": 61.0, "peak_mb": 2048, "files": {}} for name in ("train", "localise", "masks", "segment")
    }
    stages["evaluate"] = {"seconds": 3.2, "peak_mb": 100, "files": {}}
    manifest = {"tagseg": "0.1.0", "data": str(folder / "data"), "stages": stages}
    run.manifest_file.write_text(json.dumps(manifest))
    records = [
        {
            "id": sample.id,
            "image": str(sample.image),
            "tags": list(sample.tags),
            "split": sample.split,
            "size": [HEIGHT, WIDTH],
            "mask": sample.mask is not None,
            "scored": sample.scored,
        }
        for sample in dataset.samples
    ]
    data = {"layout": "folder", "classes": list(classes), "notes": [], "broken": [], "samples": records}
    run.data_file.write_text(json.dumps(data))
    score = {"miou": 0.4867, "iou": [0.9, *[0.25] * (len(classes) - 1), None], "images": 4}
    run.evaluation_file.write_text(
        json.dumps(
            {
                "classes": ["background", *classes],
                "pseudo_masks": {**score, "split": "train", "unsure_share": 0.031} if truth else None,
                "segmenter": {**score, "miou": 0.5123, "split": "val", "images": val} if truth and val else None,
            }
        )
    )
    write_histories(run, contrast)
    make_outputs(run, records, predicted=True)
    return run


def write_histories(run, contrast):
    for folder in (run.network, run.segmenter):
        folder.mkdir()
    epochs = [{"epoch": e, "loss": 1 / e, "tag_refined": 0.5 / e, "tag_coarse": 0.4 / e, "lr": 0.1} for e in (1, 2, 3)]
    if contrast:
        epochs = [{**epoch, "contrast": 3.25 if epoch["epoch"] > 1 else 0} for epoch in epochs]
    (run.network / "history.jsonl").write_text("".join(json.dumps(epoch) + "\n" for epoch in epochs))
    (run.segmenter / "history.jsonl").write_text('{"epoch": 1, "loss": 0.875, "lr": 0.01, "seconds": 3}\n')


@pytest.fixture
def read_html():
    """Return the reader of pages."""
    return Page


@pytest.fixture
def dom_in_chromium(tmp_path, chromium_program):
    """Return a function that returns a page's document after the browser has run its scripts."""

    def dom_in_chromium(page):
        flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
        flags += " --disable-component-update --disable-sync --virtual-time-budget=3000 --dump-dom"
        command = [chromium_program, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        return Page(done.stdout)

    return dom_in_chromium


class Page(HTMLParser):
    """A page as a browser reads it: its elements with their attributes, and the text outside style and script."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.text, self._hidden = [], "", False
        self.feed(html)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._hidden = tag in ("style", "script")

    def handle_endtag(self, tag):
        self._hidden = False

    def handle_data(self, data):
        self.text += "" if self._hidden else data

    def all(self, tag, **attributes):
        attributes = {key.rstrip("_"): value for key, value in attributes.items()}
        return [a for t, a in self.elements if t == tag and attributes.items() <= a.items()]


@pytest.fixture
def page_of(read_html):
    return lambda run: read_html(report(run).path.read_text(encoding="utf-8"))
