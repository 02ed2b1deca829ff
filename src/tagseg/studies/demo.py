"""The demo: everything on drawn images, with small networks trained from scratch on a CPU."""

from pathlib import Path

from tagseg.demo.draw import draw_demo
from tagseg.pipeline import Fitted, fit
from tagseg.settings.localise import LocaliseSettings
from tagseg.settings.rca import RcaSettings
from tagseg.settings.report import ReportSettings
from tagseg.settings.segment import SegmentSettings
from tagseg.settings.settings import Settings
from tagseg.settings.train import TrainSettings
from tagseg.system.progress import Track, silent


def demo_settings(seed: int = 0, device: str = "auto") -> Settings:
    """Return the demo's settings: a tiny ResNet from scratch on 128-pixel pictures, for more epochs.

    A network that knows nothing but the demo's pictures has prototypes less sure than a pretrained one's: regions are
    mined from the coarse map to the end, and attention is softer (chosen on the drawing of another seed).
    """
    return Settings(
        seed=seed,
        device=device,
        workers=0,
        train=TrainSettings(
            backbone="test_resnet", weights="random", stride=16, freeze_stride=0, freeze_batch_norm=False, neck=128,
            epochs=100, crop=113, scale=(0.5, 1.0), optimiser="adamw", lr=0.002, head_lr=1.0, weight_decay=0.05,
        ),
        rca=RcaSettings(warmup=25, slots=200, region_rule="peak", attention_temperature=0.2),
        localise=LocaliseSettings(max_side=128),
        segment=SegmentSettings(
            freeze_stride=0, freeze_batch_norm=False, epochs=25, crop=128, max_side=128, optimiser="adamw", lr=0.002,
            head_lr=1.0, weight_decay=0.05,
        ),
        report=ReportSettings(title="tagseg demo"),
    )  # fmt: skip


def run_demo(out: Path, seed: int = 0, device: str = "auto", track: Track = silent) -> Fitted:
    """Draw the demo's images into `out/data` and run all stages in `out/run`; continues like `fit`."""
    data = draw_demo(out / "data", seed=seed, track=track)
    fitted = fit(data, out / "run", demo_settings(seed, device), track=track)
    assert fitted is not None
    return fitted
