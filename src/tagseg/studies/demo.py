"""The demo: all stages on drawn images, with small networks trained from scratch on a CPU."""

from pathlib import Path

from tagseg.data.prepare import prepare
from tagseg.demo.draw import draw_demo
from tagseg.pipeline import Fitted, fit
from tagseg.report.overview import draw_overview
from tagseg.run.folder import Run
from tagseg.settings.localise import LocaliseSettings
from tagseg.settings.rca import RcaSettings
from tagseg.settings.report import ReportSettings
from tagseg.settings.segment import SegmentSettings
from tagseg.settings.settings import Settings
from tagseg.settings.train import TrainSettings
from tagseg.system.files import atomic_path
from tagseg.system.progress import Track, silent

PICTURE = "demo.jpg"
"""The picture of training images and new ones, in the demo's folder."""

QUICK_TRAIN, QUICK_VAL = 160, 40
"""How many images the quick demo draws."""


def demo_settings(seed: int = 0, device: str = "auto") -> Settings:
    """Return the demo's settings: a tiny ResNet trained from scratch on 128-pixel images, then continued with a small
    decoder as the segmentation network.

    The prototypes of a network that has only seen the demo's images are less reliable than those of a pretrained one:
    regions are mined from the coarse map throughout, and attention is softer; with so few images, confidence is judged
    within each class (chosen on images drawn with other seeds).
    """
    return Settings(
        seed=seed,
        device=device,
        workers=0,
        train=TrainSettings(
            backbone="test_resnet", weights="random", stride=16, freeze_stride=0, freeze_batch_norm=False, neck=128,
            epochs=30, batch=8, crop=80, scale=(0.5, 1.0), optimiser="adamw", lr=0.002, head_lr=1.0,
            weight_decay=0.05,
        ),
        rca=RcaSettings(warmup=6, slots=200, gate="relative", region_rule="peak", attention_temperature=0.2),
        localise=LocaliseSettings(scales=(1.0, 1.5), max_side=128),
        segment=SegmentSettings(
            start="classifier", decoder_channels=64, freeze_stride=0, freeze_batch_norm=False, epochs=5, batch=8,
            crop=80, max_side=128, optimiser="adamw", lr=0.002, head_lr=1.0, weight_decay=0.05,
            predict_scales=(1.0,),
        ),
        report=ReportSettings(title="tagseg demo"),
    )  # fmt: skip


def run_demo(out: Path, seed: int = 0, device: str = "auto", track: Track = silent, quick: bool = False) -> Fitted:
    """Draw the demo's images into `out/data` (with `quick` fewer), run all stages in `out/run`, continuing as
    `fit` does, and draw `out/demo.jpg`: some images with maps, masks and the network's masks."""
    if quick:
        data = draw_demo(out / "data", QUICK_TRAIN, QUICK_VAL, seed, track=track)
    else:
        data = draw_demo(out / "data", seed=seed, track=track)
    fitted = fit(data, out / "run", demo_settings(seed, device), track=track)
    run = Run(fitted.run)
    with atomic_path(out / PICTURE) as temporary:
        draw_overview(run, prepare(run), rows=3, new=3).save(temporary, "JPEG", quality=88)
    return fitted
