import dataclasses
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from segmentation_models_pytorch.losses import SoftCrossEntropyLoss
from torch import nn

from tagseg.data.records import VOID, Dataset, Sample
from tagseg.errors import RunError
from tagseg.masks.mask_files import write_mask
from tagseg.networks.backbones import build_backbone
from tagseg.networks.segmenters import Segmenter
from tagseg.segment.read_network import read_predictor
from tagseg.segment.train import _Learner, _step, build_segmenter, mask_loss, train_segmenter, weight_average
from tagseg.settings.segment import SegmentSettings
from tagseg.settings.settings import Settings
from tagseg.settings.train import TrainSettings
from tagseg.training.checkpoint import load_tensors
from tagseg.training.distributed import ALONE

SETTINGS = Settings(
    device="cpu",
    workers=0,
    train=TrainSettings(backbone="test_resnet", weights="random"),
    segment=SegmentSettings(
        decoder_channels=16,
        epochs=3,
        batch=3,
        crop=32,
        max_side=64,
        lr=0.05,
        head_lr=1.0,
        freeze_stride=0,
        freeze_batch_norm=False,
    ),
)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Return six images, each half background and half class 1, 2 or void, with their masks in `masks`."""
    samples = []
    for i in range(6):
        pixels = np.random.default_rng(i).integers(0, 60, (40, 48, 3), np.uint8)
        mask = np.zeros((40, 48), np.uint8)
        pixels[:, 24:, i % 3] += 180
        mask[:, 24:] = (1, 2, VOID)[i % 3]
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        write_mask(tmp_path / "masks" / f"{i}.png", mask)
        samples.append(Sample(str(i), tmp_path / f"{i}.png", (1,)))
    return Dataset(tmp_path, "folder", ("red", "green|grün"), tuple(samples))


def fit(dataset: Dataset, folder: Path, settings: Settings = SETTINGS, **more: Any) -> dict[str, bytes]:
    train_segmenter(dataset, dataset.root / "masks", settings, folder, **more)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_network_is_saved_with_its_description_and_history(dataset: Dataset, tmp_path: Path) -> None:
    left = fit(dataset, tmp_path / "net")
    assert set(left) == {"network.safetensors", "network.json", "history.jsonl"}
    _, about = load_tensors(tmp_path / "net" / "network.safetensors")
    assert json.loads(left["network.json"]) == about
    assert about["classes"] == ["background", "red", "green|grün"] and about["encoder"] == "test_resnet"
    assert about["predict_scales"] == [0.75, 1.0, 1.25] and about["max_side"] == 64 and about["stride"] == 16
    history = [json.loads(line) for line in left["history.jsonl"].splitlines()]
    assert [row["epoch"] for row in history] == [1, 2, 3]
    assert all(np.isfinite(row["loss"]) and row["seconds"] >= 0 for row in history)
    assert history[0]["lr"] > history[1]["lr"] > history[2]["lr"] > 0


def test_it_learns(dataset: Dataset, tmp_path: Path) -> None:
    longer = dataclasses.replace(SETTINGS.segment, epochs=8)
    history = train_segmenter(
        dataset, dataset.root / "masks", dataclasses.replace(SETTINGS, segment=longer), tmp_path / "net"
    ).history
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]


def test_steps_give_the_epochs_that_are_not_set(dataset: Dataset, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, segment=dataclasses.replace(SETTINGS.segment, epochs=0, steps=8))
    history = train_segmenter(dataset, dataset.root / "masks", settings, tmp_path / "net").history
    assert len(history) == 4  # of two batches


def test_a_single_mask_is_a_training_set(dataset: Dataset, tmp_path: Path) -> None:
    one = dataclasses.replace(dataset, samples=dataset.samples[:1])
    fit(one, tmp_path / "net")
    predictor = read_predictor(tmp_path / "net")
    with Image.open(one.samples[0].image) as image:
        assert predictor(image).mask.shape == (40, 48)


def test_the_same_seed_gives_the_same_bytes(dataset: Dataset, tmp_path: Path) -> None:
    one, two, other = (
        fit(dataset, tmp_path / name, dataclasses.replace(SETTINGS, seed=seed))["network.safetensors"]
        for name, seed in (("one", 4), ("two", 4), ("other", 5))
    )
    assert one == two != other


@pytest.mark.parametrize("finished", [0, 1, 2])
def test_an_interrupted_training_ends_like_an_uninterrupted_one(
    finished: int, dataset: Dataset, tmp_path: Path
) -> None:
    def interrupted(items: Iterable[Any], title: str, total: int) -> Iterator[Any]:
        for i, item in enumerate(items):
            if i == 1 and title == f"segment, epoch {finished + 1}/3":
                raise KeyboardInterrupt
            yield item

    with pytest.raises(KeyboardInterrupt):
        fit(dataset, tmp_path / "net", track=interrupted)
    assert (tmp_path / "net" / "checkpoint.safetensors").exists() == (finished > 0)
    torch.manual_seed(99)  # what was drawn before must not matter
    continued, undisturbed = fit(dataset, tmp_path / "net"), fit(dataset, tmp_path / "undisturbed")
    assert continued["network.safetensors"] == undisturbed["network.safetensors"]
    rows = [
        [{**json.loads(line), "seconds": 0} for line in left["history.jsonl"].splitlines()]
        for left in (continued, undisturbed)
    ]
    assert rows[0] == rows[1] and len(rows[0]) == 3


def test_a_damaged_checkpoint_is_named(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "checkpoint.safetensors").write_bytes(b"half")
    with pytest.raises(RunError, match=r"net/checkpoint\.safetensors: missing or damaged"):
        fit(dataset, tmp_path / "net")


def test_the_number_of_workers_does_not_matter(dataset: Dataset, tmp_path: Path) -> None:
    once = dataclasses.replace(SETTINGS, segment=dataclasses.replace(SETTINGS.segment, epochs=1))
    one, two = (
        fit(dataset, tmp_path / str(workers), dataclasses.replace(once, workers=workers))["network.safetensors"]
        for workers in (0, 1)
    )
    assert one == two


def test_encoder_and_weights_may_differ_from_the_classifiers(dataset: Dataset, tmp_path: Path) -> None:
    settings = dataclasses.replace(
        SETTINGS,
        train=TrainSettings(backbone="test_vit", weights="timm"),
        segment=dataclasses.replace(SETTINGS.segment, epochs=1, encoder="test_resnet", weights="random"),
    )
    assert json.loads(fit(dataset, tmp_path / "net", settings)["network.json"])["encoder"] == "test_resnet"


def test_a_random_start_gives_a_warning(dataset: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    once = dataclasses.replace(SETTINGS, segment=dataclasses.replace(SETTINGS.segment, epochs=1))
    fit(dataset, tmp_path / "net", once)
    assert "test_resnet starts from random weights (weights = random)" in caplog.text


def test_void_pixels_do_not_affect_the_loss() -> None:
    scores = torch.randn(2, 3, 4, 5)
    masks = torch.randint(0, 3, (2, 4, 5))
    masks[0, :2], masks[1, :, 3] = VOID, VOID
    losses = [
        -scores[b, :, y, x].log_softmax(0)[masks[b, y, x]]
        for b in range(2)
        for y in range(4)
        for x in range(5)
        if masks[b, y, x] != VOID
    ]
    assert torch.allclose(mask_loss(scores, masks), torch.stack(losses).sum())
    changed = torch.where(masks[:, None] == VOID, torch.randn_like(scores), scores)
    assert torch.equal(mask_loss(changed, masks), mask_loss(scores, masks))


def test_loss_by_hand() -> None:
    scores = torch.tensor([[[[0.0, 9.0]], [[np.log(3.0), -9.0]]]])
    assert mask_loss(scores, torch.tensor([[[1, VOID]]])).item() == pytest.approx(np.log(4 / 3))


class Toy(Segmenter):
    """Scores of three ids from each pixel's colour."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.frozen_norms = False
        self.register_buffer("mean", torch.zeros(1))
        self.scores = nn.Conv2d(3, 3, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.scores(images)
        return scores


def toy_step(
    bf16: bool, pictures: torch.Tensor, masks: torch.Tensor
) -> tuple[Toy, torch.optim.swa_utils.AveragedModel]:
    torch.manual_seed(0)
    toy = Toy()
    average, optimizer = weight_average(toy, 0.9), torch.optim.SGD(toy.parameters(), lr=0.5)
    _step(_Learner(toy, toy, average, optimizer), iter([(pictures, masks)]), 50.0, bf16, ALONE)
    return toy, average


def test_a_step_learns_from_the_mean_over_labelled_pixels() -> None:
    """Three quarters void: as without these pixels. The soft cross-entropy of segmentation-models-pytorch is a quarter
    of that (findings/smp_softce_void.sh)."""
    pictures, masks = torch.rand(2, 3, 8, 6), torch.randint(0, 3, (2, 8, 6))
    masks[:, 2:] = VOID
    learned, _ = toy_step(False, pictures, masks)
    torch.manual_seed(0)
    expected = Toy()
    loss = nn.functional.cross_entropy(expected(pictures[:, :, :2]), masks[:, :2])
    theirs = SoftCrossEntropyLoss(smooth_factor=0.0, ignore_index=VOID)(expected(pictures), masks)
    assert theirs.item() == pytest.approx(loss.item() / 4)
    loss.backward()  # type: ignore[no-untyped-call]
    for parameter, found in zip(expected.parameters(), learned.parameters(), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(found, parameter - 0.5 * parameter.grad)


def test_in_bf16_weights_and_their_average_stay_in_float32() -> None:
    """An average in bfloat16 would stand still (findings/torch_ema_bfloat16.sh)."""
    learned, average = toy_step(True, torch.rand(2, 3, 8, 6), torch.randint(0, 3, (2, 8, 6)))
    kept = [*learned.parameters(), *average.module.parameters(), *average.module.buffers()]
    assert len(kept) == 5 and all(tensor.dtype == torch.float32 for tensor in kept)


def test_void_alone_gives_zero_loss_and_gradient() -> None:
    scores = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = mask_loss(scores, torch.full((1, 2, 2), VOID))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0 and scores.grad is not None and not scores.grad.any()


def test_accumulated_batches_learn_as_a_large_one(dataset: Dataset, tmp_path: Path) -> None:
    frozen = dataclasses.replace(SETTINGS.segment, encoder="test_vit", network="deeplabv2", epochs=2, freeze_stride=0)
    # Neither dropout nor batch norms, which see a batch at a time: what is left is the gradient.
    tensors = []
    for batch, times in ((6, 1), (2, 3), (4, 2)):
        options = dataclasses.replace(frozen, batch=batch, accumulate=times)
        folder = tmp_path / f"{batch}"
        fit(dataset, folder, dataclasses.replace(SETTINGS, segment=options))
        tensors.append(load_tensors(folder / "network.safetensors")[0])
    one, *others = tensors
    assert all(torch.allclose(one[name], other[name], atol=2e-5) for other in others for name in one)


def test_average_weights_are_what_a_loop_gives() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    average = weight_average(network, 0.9)
    expected: dict[str, torch.Tensor] = {}
    for step in range(30):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter))
            network(torch.randn(4, 2))
        average.update_parameters(network)
        decay = min(0.9, (1 + step) / (10 + step))
        for name, value in network.state_dict().items():
            now = value.clone()
            old = expected.get(name, now)
            expected[name] = decay * old + (1 - decay) * now if now.is_floating_point() else now
    found = average.module.state_dict()
    assert all(torch.allclose(found[name], expected[name], atol=1e-5) for name in expected)
    assert not torch.allclose(found["0.weight"], network.state_dict()["0.weight"], atol=1e-2)


def test_the_average_is_kept_and_survives_an_interruption(dataset: Dataset, tmp_path: Path) -> None:
    options = dataclasses.replace(SETTINGS.segment, ema=0.9)
    settings = dataclasses.replace(SETTINGS, segment=options)
    whole, last = fit(dataset, tmp_path / "whole", settings), fit(dataset, tmp_path / "last")
    assert whole["network.safetensors"] != last["network.safetensors"]
    assert whole["network.json"] == last["network.json"]

    class Interrupted(Exception):
        pass

    def stop(items: Iterable[Any], title: str, total: int) -> Iterator[Any]:
        if title.startswith("segment, epoch 2"):
            raise Interrupted
        return iter(items)

    with pytest.raises(Interrupted):
        fit(dataset, tmp_path / "cut", settings, track=stop)
    assert fit(dataset, tmp_path / "cut", settings)["network.safetensors"] == whole["network.safetensors"]


def test_masks_without_a_labelled_pixel_are_an_error(dataset: Dataset, tmp_path: Path) -> None:
    for path in (tmp_path / "masks").glob("*.png"):
        write_mask(path, np.full((40, 48), VOID, np.uint8))
    with pytest.raises(RunError, match="the masks have no labelled pixel, all are 255"):
        fit(dataset, tmp_path / "net")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"accumulate": 0}, r"segment\.accumulate must be 1 or more, got 0"),
        ({"ema": 1.0}, r"segment\.ema must be 0 or more and below 1, got 1\.0"),
        ({"crop": 16}, r"segment\.crop must be 32 pixels or more and at most 8192 pixels, got 16"),
        (
            {"decoder_channels": 4},
            r"segment\.decoder-channels must be 8 channels or more and at most 4096 channels, got 4",
        ),
        (
            {"start": "classifier", "encoder": "resnet18"},
            r"segment\.encoder must be empty with segment\.start = classifier, got resnet18; add --segment",
        ),
        ({"start": "classifier", "labels": "drawn"}, r"segment\.labels must be empty with segment\.start = classifier"),
    ],
)
def test_settings_out_of_range_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SETTINGS.segment, **values)


@pytest.mark.parametrize("encoder", ["test_resnet", "test_efficientnet", "test_convnext", "vgg11", "test_vit"])
def test_the_encoder_starts_at_a_classifiers_backbone(encoder: str, caplog: pytest.LogCaptureFixture) -> None:
    settings = dataclasses.replace(SETTINGS, train=dataclasses.replace(SETTINGS.train, backbone=encoder))
    backbone = build_backbone(encoder, "random", 16).model
    start = {
        name: torch.rand_like(one) if one.is_floating_point() else one for name, one in backbone.state_dict().items()
    }
    network = build_segmenter(settings, ("background", "red"), start)[0]
    own = {name.replace(".", "_"): one for name, one in network.net.encoder.model.state_dict().items()}
    given = {name.replace(".", "_"): one for name, one in start.items()}
    assert own and all(torch.equal(one, given[name]) for name, one in own.items())
    assert "starts from random weights" not in caplog.text
    del start[next(name for name in start if name.replace(".", "_") in own)]
    with pytest.raises(ValueError, match=r"cannot start at the classification network's backbone: 1 of \d+ tensors"):
        build_segmenter(settings, ("background", "red"), start)


@pytest.mark.parametrize(("name", "encoder"), [("auto", "test_resnet"), ("upernet", "test_convnext")])
def test_a_narrow_decoder_trains_and_is_read_back(name: Any, encoder: str, dataset: Dataset, tmp_path: Path) -> None:
    sizes = []
    for channels in (256, 24):
        options = dataclasses.replace(SETTINGS.segment, network=name, encoder=encoder, decoder_channels=channels)
        settings = dataclasses.replace(SETTINGS, segment=dataclasses.replace(options, epochs=1))
        folder = tmp_path / str(channels)
        train_segmenter(dataset, dataset.root / "masks", settings, folder)
        tensors, about = load_tensors(folder / "network.safetensors")
        assert about["decoder_channels"] == channels
        network = read_predictor(folder, "cpu").network
        assert all(torch.equal(tensors[name], value) for name, value in network.state_dict().items())
        sizes.append(sum(parameter.numel() for parameter in network.new_parameters()))
    assert sizes[1] < sizes[0] / 5


@pytest.mark.parametrize(
    ("network", "encoder", "precision"),
    [
        ("deeplabv2", "test_resnet", "fp32"),
        ("deeplabv2", "vgg11", "fp32"),
        ("auto", "test_vit", "fp32"),
        ("upernet", "test_convnext", "fp32"),
        ("auto", "test_resnet", "bf16"),
    ],
)
def test_every_network_trains_and_predicts(
    network: Any, encoder: str, precision: Any, dataset: Dataset, tmp_path: Path
) -> None:
    options = dataclasses.replace(SETTINGS.segment, network=network, encoder=encoder, epochs=1)
    if network == "deeplabv2":
        options = dataclasses.replace(options, stride=8)
    history = train_segmenter(
        dataset,
        dataset.root / "masks",
        dataclasses.replace(SETTINGS, segment=options, precision=precision),
        tmp_path / "net",
    ).history
    assert np.isfinite(history[0]["loss"]) and history[0]["loss"] > 0
    predictor = read_predictor(tmp_path / "net", "cpu")
    tensors = load_tensors(tmp_path / "net" / "network.safetensors")[0]
    assert all(torch.equal(tensors[name], value) for name, value in predictor.network.state_dict().items())
    for size in ((48, 40), (33, 71), (150, 20)):
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8))
        mask, seen = predictor(image).mask, predictor.probabilities(image)
        assert mask.shape == size[::-1] and set(np.unique(mask)) <= {0, 1, 2}
        assert np.allclose(seen.sum(0), 1, atol=1e-4) and np.ptp(seen) > 0
