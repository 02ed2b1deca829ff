"""The presets: those of the paper equal its table, and all of them build networks that learn."""

import dataclasses
import math
from pathlib import Path
from typing import Any, get_args

import pytest
import timm
import torch
from PIL import Image

from tagseg.cli.main import main
from tagseg.data.records import Dataset, Sample
from tagseg.masks.localise import localise_image
from tagseg.networks.backbones import freeze
from tagseg.rca.bank import Bank
from tagseg.rca.network import RcaNetwork, build_network
from tagseg.rca.regions import Gate
from tagseg.rca.step import training_step
from tagseg.rca.train import train
from tagseg.run.folder import Run
from tagseg.settings.presets import Preset, Quality, preset, preset_values, without_effect_when_frozen
from tagseg.settings.settings import Settings, map_kind
from tagseg.training.loading import Crop
from tagseg.training.optimizer import build_optimizer, set_lr

NAMES = ("paper-voc", "paper-coco")
TRANSFORMERS = ("dinov2", "dinov3", "clip")
TABLE: dict[str, Any] = {
    "maps": "oaa",
    "train": {
        "backbone": "vgg16", "stride": 8, "neck": 0, "head_convs": 3, "epochs": 30, "batch": 8, "crop": 368,
        "optimiser": "sgd", "lr": 1e-3, "head_lr": 10.0, "bias_lr": 2.0, "weight_decay": 5e-4, "schedule": "steps",
        "steps": (5, 10), "coarse_weight": 0.4,
    },
    "rca": {
        "contrast": True, "aggregation": True, "region_rule": "softmax-mean", "temperature": 0.07, "mix": True,
        "mix_alpha": 8.0, "contrast_weight": 0.01, "warmup": 2, "confidence": 0.7, "slots": 500, "update": "blend",
        "momentum": 0.99, "prototypes": 10, "background": False,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_presets_are_the_papers_table(name: str) -> None:
    found = preset(name)
    assert found.maps == TABLE["maps"] and found.data.layout == name.removeprefix("paper-")
    for section in ("train", "rca"):
        here = dataclasses.asdict(getattr(found, section))
        assert {key: here[key] for key in TABLE[section]} == TABLE[section]
    assert map_kind(found.localise, found.rca, found.maps) == "refined"  # the paper's inference: O, never P
    assert found == Settings.from_dict(preset_values(name))


@pytest.mark.parametrize(("name", "classes"), [("paper-voc", 20), ("paper-coco", 80)])
def test_the_presets_build_and_learn(name: str, classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images in small crops: one epoch of warm-up, then one with contrast, aggregation and accumulation."""
    samples = []
    for i in range(2):
        Image.effect_noise((64, 56), 90).convert("RGB").save(tmp_path / f"{i}.png")
        samples.append(Sample(str(i), tmp_path / f"{i}.png", (i + 1, classes)))
    paper = preset(name)
    small = dataclasses.replace(
        paper,
        device="cpu",
        workers=0,
        train=dataclasses.replace(paper.train, weights="random", crop=48, batch=2, epochs=2),
        rca=dataclasses.replace(paper.rca, warmup=1, confidence=0.0),
    )
    built: list[RcaNetwork] = []

    def build(*given: Any, **more: Any) -> RcaNetwork:
        built.append(build_network(*given, **more))
        return built[-1]

    # Saving VGG16 takes longer than training it here.
    monkeypatch.setattr("tagseg.training.loop.save_tensors", lambda *_: None)
    monkeypatch.setattr("tagseg.rca.train.build_network", build)
    names = tuple(str(number) for number in range(classes))
    history = train(Dataset(tmp_path, "folder", names, tuple(samples)), small, tmp_path / "network").history
    assert len(history) == 2 and all(math.isfinite(value) for row in history for value in row.values())
    assert history[0]["contrast"] == 0 < history[1]["contrast"]
    assert (tmp_path / "network" / "accumulated.npy").exists()
    [network] = built
    assert (network.channels, network.backbone.stride, network.classes) == (512, 8, classes)
    assert all(parameter.grad is not None for parameter in network.parameters())
    convolutions = [layer for layer in network.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert [layer.dilation[0] for layer in convolutions] == 10 * [1] + 3 * [2] + 5 * [1]  # VGG16, head, refined map
    assert network.backbone.fitting_size(368.0, 368.0) == (368, 368)  # 46 x 46 cells


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_the_presets_of_transformers_fit_their_backbones(name: str) -> None:
    found = preset(name)
    assert found.train.backbone in timm.list_pretrained()
    with torch.device("meta"):
        model = timm.create_model(found.train.backbone, num_classes=0)
    (stride,) = {block["reduction"] for block in model.feature_info}
    assert (found.train.stride, found.train.crop % stride, found.segment.crop % stride) == (stride, 0, 0)
    assert isinstance(model.get_submodule(found.rca.layer), torch.nn.LayerNorm)
    freeze(model, model.feature_info, found.train.freeze_stride)
    learning = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert learning == ({"norm.weight", "norm.bias"} if name != "clip" else set(dict(model.named_parameters())))
    assert found.has_posteriors() and found.train.head_lr * found.train.lr == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("name", "backbone", "layer"),
    [
        ("dinov2", "vit_small_patch14_reg4_dinov2", "norm"),
        ("dinov3", "vit_tiny_patch16_dinov3_qkvb", "norm"),
        ("clip", "vit_xsmall_patch16_clip_224", "blocks.9.norm1"),
    ],
)
def test_the_presets_of_transformers_learn_and_localise(name: str, backbone: str, layer: str) -> None:
    """The family's smallest network with random weights: steps with bank, contrast and aggregation, then maps."""
    found = preset(name)
    small = dataclasses.replace(
        found,
        train=dataclasses.replace(found.train, backbone=backbone, weights="random"),
        rca=dataclasses.replace(found.rca, layer=layer, confidence=0.0, slots=8, prototypes=2),
        localise=dataclasses.replace(found.localise, scales=(1.0,), max_side=64),
    )
    network = build_network(2, small.train, small.rca).train()
    stride, side = network.backbone.stride, network.backbone.fitting_size(64, 64)[0]
    assert stride == small.train.stride and network.channels == network.backbone.channels + small.train.neck
    bank = Bank(3, 8, network.channels)
    pictures = torch.zeros(2, 3, side, side)
    pictures[0, 0, : side // 2], pictures[1, 2, side // 2 :] = 1, 1
    crop = Crop(pictures, torch.eye(2), torch.zeros(2, side, side), torch.arange(2), torch.zeros(2, 4),
                torch.zeros(2, dtype=torch.bool))  # fmt: skip
    new = [parameter for module in network.new_layers() for parameter in module.parameters()]
    rates = (small.train.lr, small.train.head_lr, small.train.weight_decay, small.train.optimiser)
    optimizer = build_optimizer(network.backbone.parameters(), new, *rates)
    set_lr(optimizer, small.train.lr)
    gate, generator = Gate(2, small.rca.confidence, relative=False), torch.Generator().manual_seed(0)
    losses = []
    for step in range(6):
        if step == 1:
            network.refresh_prototypes(bank, generator)
        losses.append(training_step(network, bank, gate, optimizer, crop, small, step > 0, generator)[0])
    assert losses[0]["contrast"] == 0 < losses[1]["contrast"] and bank.filled.all()
    assert losses[-1]["loss"] < losses[1]["loss"] and losses[-1]["tag_coarse"] < losses[0]["tag_coarse"]
    learns = [parameter.grad is not None for parameter in network.backbone.model.blocks.parameters()]  # type: ignore[union-attr]
    assert any(learns) == all(learns) == (name == "clip")
    network.refresh_prototypes(bank, generator)
    image = Image.effect_noise((80, 64), 90).convert("RGB")
    maps = localise_image(network.eval(), image, (1, 2), small.localise)
    assert maps.shape == (2, 13, 16) and maps.min() >= 0 and maps.sum(0).max() <= 1 + 1e-5  # posteriors


def test_an_unknown_preset() -> None:
    assert get_args(Preset) == (*NAMES, *TRANSFORMERS)  # what the command line offers
    with pytest.raises(ValueError, match=r"--preset must be one of paper-voc, .*, clip, got paper"):
        preset("paper")


MINE = """\
maps = "cam"
device = "cpu"
workers = 0
[data]
min-images = 1
[train]
backbone = "test_resnet"
weights = "random"
epochs = 1
crop = 33
[rca]
slots = 12
"""


def fit(*arguments: str | Path) -> int:
    try:
        main(["fit", *map(str, arguments), "--until", "train"])
    except SystemExit as leaving:
        return int(leaving.code or 0)
    return 0


def test_flags_beat_the_file_which_beats_the_preset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, run = tmp_path / "photos", Run(tmp_path / "run")
    for name in ("cat", "dog"):
        (photos / name).mkdir(parents=True)
        Image.effect_noise((40, 40), 90).save(photos / name / "1.png")
    (tmp_path / "my.toml").write_text(MINE)
    given = (photos, "--out", run.root, "--preset", "paper-voc")
    more = ("--settings", tmp_path / "my.toml", "--data.layout", "folder", "--train.lr", "0.5")
    assert fit(*given, *more) == 0, capsys.readouterr().err
    found = run.settings()
    assert (found.data.layout, found.train.lr) == ("folder", 0.5)  # flags
    assert (found.maps, found.train.backbone, found.train.crop, found.rca.slots) == ("cam", "test_resnet", 33, 12)
    assert (found.train.bias_lr, found.train.head_convs, found.rca.update) == (2.0, 3, "blend")  # the preset
    assert found.localise == Settings().localise
    assert fit(photos, "--out", run.root) == 0 and run.settings() == found  # continues with the run's own settings
    capsys.readouterr()
    assert fit(*given) == 2 and "data.layout was 'folder', now 'voc'" in " ".join(capsys.readouterr().err.split())


def test_the_help_of_fit_shows_the_presets(capsys: pytest.CaptureFixture[str]) -> None:
    fit("--help")
    text = capsys.readouterr().out
    assert "--preset" in text and all(name in text for name in NAMES)


def test_every_quality_makes_masks_from_frozen_features_and_takes_longer_than_the_one_before() -> None:
    fast, balanced, best = (preset(name) for name in get_args(Quality))
    assert {one.train.method for one in (fast, balanced, best)} == {"frozen"}
    assert fast.rca == balanced.rca == best.rca != Settings().rca

    def steps(settings: Settings) -> int:
        segment = settings.segment
        return segment.steps + (segment.rounds - 1) * (segment.teacher_steps or segment.steps)

    assert steps(fast) < steps(balanced) < steps(best)


def test_settings_that_only_a_training_reads_are_known() -> None:
    assert without_effect_when_frozen("train.epochs") and without_effect_when_frozen("rca.confidence")
    assert not any(map(without_effect_when_frozen, ("train.backbone", "rca.slots", "segment.epochs", "seed")))
    names = {f"{section}.{name}" for section in ("train", "rca") for name in Settings().to_dict()[section]}
    assert 0 < len([name for name in names if without_effect_when_frozen(name)]) < len(names)
