import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import yaml  # type: ignore[import-untyped]
from markdown_it import MarkdownIt
from PIL import Image

import tagseg
from tagseg.errors import RunError
from tagseg.export.card import as_text, model_card, weights_licence
from tagseg.export.model import ExportedModel, describe, without_folders
from tagseg.masks.mask_files import write_mask
from tagseg.run.folder import Run
from tagseg.segment.about import Licence
from tagseg.settings.settings import Settings

MakeRun = Callable[..., Run]
HOSTILE = (
    "a|b", "[x](http://evil.example)", "![p](p.png)", "<script>alert(1)</script>", "two\nlines", "# head", "`code`",
    "**bold** _it_", "&amp; \\|", "---", "| | |", "~~~", "$x$ :smile: @me", "Größe 犬", "\u202eright\x00",
)  # fmt: skip


def card_of(run: Run, onnx: bool = False, difference: float | None = None) -> str:
    return model_card(run, describe(run), run.settings().to_dict(), onnx, difference)


def parsed(card: str) -> tuple[dict[str, Any], str]:
    """Return the front matter and the Markdown after it."""
    empty, front, body = card.split("---\n", 2)
    assert empty == ""
    return yaml.safe_load(front), body


def tables(body: str) -> list[list[list[str]]]:
    """Return the cells of every table as displayed, by row."""
    found: list[list[list[str]]] = []
    inside = False
    for token in MarkdownIt("commonmark").enable("table").parse(body):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type in ("th_open", "td_open"):
            inside = True
        elif token.type in ("th_close", "td_close"):
            inside = False
        elif inside and token.children is not None:
            found[-1][-1].append("".join(child.content for child in token.children))
    return found


def evaluated(run: Run, classes: tuple[str, ...]) -> None:
    def scores(split: str, first: float) -> dict[str, Any]:
        iou = [first, None, *(0.5 for _ in classes[1:])]
        return {"miou": 0.625, "iou": iou, "images": 6, "split": split, "unsure_share": None}

    figures = {"classes": ["background", *classes], "pseudo_masks": scores("train", 0.75), "calibrated": 0}
    with run.stage("evaluate"):
        run.evaluation_file.write_text(json.dumps(figures | {"segmenter": scores("val", 0.8), "self_trained": None}))


def test_the_front_matter_is_what_the_hub_reads(run: Run) -> None:
    front, _ = parsed(card_of(run))
    assert front == {
        "license": "other",
        "license_name": "see-licence-below",
        "library_name": "tagseg",
        "pipeline_tag": "image-segmentation",
        "tags": ["tagseg", "semantic-segmentation", "weakly-supervised"],
    }


def test_data_is_counted(run: Run) -> None:
    _, body = parsed(card_of(run))
    counts = "6 training images and 2 validation images; 1 unreadable image left out."
    assert f"Data folder: my photos, with {counts}" in body
    assert "The network was trained on the tags of the training images, without any masks." in body
    header, *rows = tables(body)[0]
    assert header == ["id", "class", "training images with this tag"]
    assert rows == [["0", "background", "-"], ["1", "cat", "3"], ["2", "dog", "3"]]


def test_the_card_mentions_saliency_maps_and_calibration(new_run: MakeRun, tmp_path: Path) -> None:
    run = new_run(tmp_path, settings=Settings.from_dict({"maps": "eps", "train": {"weights": "random"}}))
    assert "on the tags of the training images and on saliency maps, without any masks." in card_of(run)
    assert "true masks of" not in card_of(run)
    run.store(msgspec.structs.replace(run.manifest(), calibration_images=("1", "2", "5")))
    assert "settings of the pseudo-masks were calibrated on the true masks of 3 training images." in card_of(run)


def test_the_card_of_an_evaluated_run_shows_its_results(new_run: MakeRun, tmp_path: Path) -> None:
    run = new_run(tmp_path)
    assert "This network has not been evaluated." in card_of(run)
    evaluated(run, ("cat", "dog"))
    _, body = parsed(card_of(run))
    assert tables(body)[1] == [
        ["class", "pseudo-masks (6 train images)", "segmenter (6 val images)"],
        ["mean IoU", "62.5", "62.5"],
        ["background", "75.0", "80.0"],
        ["cat", "-", "-"],
        ["dog", "50.0", "50.0"],
    ]


def test_the_card_shows_settings_and_versions(run: Run, tmp_path: Path) -> None:
    _, body = parsed(card_of(run))
    (toml,) = re.findall(r"````toml\n(.*?)````", body, re.DOTALL)
    (tmp_path / "shown.toml").write_text(toml)
    shown, own = Settings.from_toml(tmp_path / "shown.toml"), run.settings()
    assert (shown.seed, shown.segment, shown.train) == (own.seed, own.segment, own.train)
    assert "was trained for 2 epochs. Encoder `test_resnet`." in body
    assert f"exported with tagseg {tagseg.__version__} and PyTorch " in body


def test_hostile_names_are_shown_literally(new_run: MakeRun, tmp_path: Path) -> None:
    run = new_run(tmp_path, classes=HOSTILE)
    evaluated(run, HOSTILE)
    card = card_of(run)
    front, body = parsed(card)
    assert front["library_name"] == "tagseg"
    shown = [" ".join("".join(c if c.isprintable() else " " for c in name).split()) for name in HOSTILE]
    data, figures = tables(body)
    assert [row[1] for row in data[2:]] == shown and all(len(row) == 3 for row in data)
    assert [row[0] for row in figures[3:]] == shown and all(len(row) == 3 for row in figures)
    tokens = MarkdownIt("commonmark").enable("table").parse(body)
    kinds = {token.type for token in tokens} | {child.type for token in tokens for child in token.children or ()}
    assert not kinds & {"html_block", "html_inline", "image", "link_open"}
    titles = [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"]
    assert titles[1:] == ["Data", "Results", "How to use it", "Settings", "Licence", "Limits"]
    assert "<script>" not in card and "\u202e" not in card


def test_plain_text_stays_readable() -> None:
    assert as_text("St. Bernard's dog, big-eared (old)") == "St. Bernard's dog, big-eared (old)"


@pytest.mark.parametrize(
    ("encoder", "weights", "licence", "text"),
    [
        ("resnet50", "timm", "apache-2.0", "timm/resnet50.a1_in1k from timm, licence apache-2.0"),
        ("vit_small_patch16_dinov3", "timm", "dinov3-license", "licence dinov3-license"),
        (
            "no_such_net",
            "timm",
            None,
            "timm's weights for no_such_net; timm states no licence, so check it at the source",
        ),
        ("resnet50", "random", None, "none (training started from random weights)"),
        ("resnet50", "/some/where.safetensors", None, "from a file; tagseg does not know its licence, so check it"),
    ],
)
def test_licences_of_pretrained_weights(encoder: str, weights: str, licence: str | None, text: str) -> None:
    found = weights_licence(encoder, weights)
    assert found.id == licence and text in found.text and "where.safetensors" not in found.text


@pytest.mark.parametrize(
    ("licence", "front_matter"),
    [
        ("mit", {"license": "mit"}),
        ("dinov3-license", {"license": "other", "license_name": "dinov3-license"}),
        (None, {"license": "other", "license_name": "see-licence-below"}),
    ],
)
def test_licences_in_the_front_matter(licence: str | None, front_matter: dict[str, str], run: Run) -> None:
    about = msgspec.structs.replace(describe(run), licence=Licence(licence, "those of someone"))
    front, body = parsed(model_card(run, about, run.settings().to_dict(), onnx=False))
    assert {key: value for key, value in front.items() if key.startswith("license")} == front_matter
    assert "Pretrained weights: those of someone." in body


def test_the_segmenters_own_pretrained_weights_count(new_run: MakeRun, tmp_path: Path) -> None:
    values = {"train": {"weights": "random"}, "segment": {"weights": "timm", "encoder": "test_resnet"}}
    run = new_run(tmp_path, settings=Settings.from_dict(values))
    assert describe(run).licence.id == "apache-2.0"


@pytest.mark.parametrize("content", [None, "{", "{}", '{"samples": 3}', "[]"])
def test_a_missing_or_damaged_data_json_is_named(content: str | None, new_run: MakeRun, tmp_path: Path) -> None:
    run = new_run(tmp_path)
    run.data_file.unlink()
    if content is not None:
        run.data_file.write_text(content)
    with pytest.raises(RunError, match=r"data\.json: (missing|damaged \(.*\)); .*images are read and checked again"):
        card_of(run)


def test_a_card_says_whether_its_onnx_file_was_compared(run: Run) -> None:
    assert "Its probabilities agreed with PyTorch's to within 2e-06." in card_of(run, onnx=True, difference=2e-6)
    assert "Its results were not compared with PyTorch's." in card_of(run, onnx=True)
    assert "PyTorch's to within" not in card_of(run) and "not compared" not in card_of(run)


def test_the_snippets_of_a_card_run(
    exported: ExportedModel, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = exported.folder
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (80, 100, 3), np.uint8)
    Image.fromarray(pixels).save("photo.jpg")
    with_torch, by_smp, by_onnx = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    found: list[dict[str, Any]] = []
    for snippet in (with_torch, by_onnx, by_smp):
        names: dict[str, Any] = {}
        exec(snippet.replace("path/to/this/folder", out.as_posix()), names)
        found.append(names)
    assert found[0]["mask"].shape == (80, 100) and found[1]["mask"].shape == (51, 64)
    assert list(found[0]["predictor"].classes) == found[1]["classes"] == ["background", "cat", "dog"]
    assert len(np.unique(found[0]["mask"])) > 1 and len(np.unique(found[1]["mask"])) > 1
    # One pass without other scales or the mirrored image, so the results are similar, not equal.
    large = Image.fromarray(found[1]["mask"].astype(np.uint8)).resize((100, 80), Image.Resampling.NEAREST)
    assert (np.asarray(large) == found[0]["mask"]).mean() > 0.5
    # Their network is also without the other scales, and resizes the whole image.
    assert found[2]["mask"].shape == (80, 96) and len(found[2]["mask"].unique()) > 1
    assert "onnxruntime" not in card_of(run)


def test_a_card_says_who_else_loads_the_network(run: Run) -> None:
    theirs = card_of(run)
    assert 'smp.from_pretrained("path/to/this/folder")' in theirs and "multiples of 16 pixels" in theirs
    about = msgspec.structs.replace(describe(run), network="deeplabv2")
    ours = model_card(run, about, run.settings().to_dict())
    assert "Only tagseg loads this network: it is DeepLab-v2" in ours and "smp" not in ours
    placed = model_card(run, msgspec.structs.replace(describe(run), cornered=True), run.settings().to_dict())
    assert "Only tagseg loads this network: it is DeepLabV3+ with its deep features" in placed and "smp" not in placed


def test_the_card_mentions_maps_from_another_tool(new_run: MakeRun, tmp_path: Path) -> None:
    values = {
        "localise": {"maps_from": "/home/anna/their cams"},
        "train": {"backbone": "test_resnet", "weights": "random"},
    }
    run = new_run(tmp_path, settings=Settings.from_dict(values))
    card = model_card(run, describe(run), without_folders(run.settings().to_dict()))
    assert "on the tags of the training images and on maps from another tool (folder their cams)" in card
    assert "anna" not in card and "without any masks" not in card and "It was trained on tags" in card


def test_the_card_mentions_masks_from_another_tool(new_run: MakeRun, tmp_path: Path) -> None:
    values = {
        "segment": {"labels": "/home/anna/drawn masks"},
        "train": {"backbone": "test_resnet", "weights": "random"},
    }
    run = new_run(tmp_path, settings=Settings.from_dict(values))
    write_mask(run.labels / "0.png", np.zeros((4, 4), np.uint8))
    card_of_tags = card_of(new_run(tmp_path / "tags"))
    card = model_card(run, describe(run), without_folders(run.settings().to_dict()))
    assert "# A segmentation network trained on masks" in card and "without any masks" not in card
    assert "on masks from another tool (folder drawn masks) of 1 training image." in card
    assert "weakly-supervised" not in parsed(card)[0]["tags"] and "weakly-supervised" in parsed(card_of_tags)[0]["tags"]
    assert "anna" not in card and "It was trained on tags" not in card and "It knows only the classes above" in card
