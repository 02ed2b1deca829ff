"""The demo: everything on drawn images, with small networks trained from scratch on a CPU."""

from pathlib import Path

from tagseg.data.demo import draw_demo
from tagseg.pipeline import Fitted, fit
from tagseg.progress import Track, silent
from tagseg.settings import LocaliseSettings, RcaSettings, ReportSettings, SegmentSettings, Settings, TrainSettings


def demo_settings(seed: int = 0, device: str = "auto") -> Settings:
    """Return the demo's settings: a small ResNet from scratch at 128 pixels, batch norms learning, more epochs."""
    return Settings(
        seed=seed,
        device=device,
        workers=0,
        train=TrainSettings(
            backbone="resnet10t", weights="random", stride=8, freeze_stride=0, freeze_batch_norm=False, neck=128,
            epochs=20, batch=16, crop=129, scale=(0.4, 1.0), lr=0.05, head_lr=1.0,
        ),
        rca=RcaSettings(warmup=4, slots=200),
        localise=LocaliseSettings(max_side=128),
        segment=SegmentSettings(
            weights="random", freeze_stride=0, freeze_batch_norm=False, epochs=20, crop=128, max_side=128, lr=0.05,
            head_lr=1.0,
        ),
        report=ReportSettings(title="tagseg demo"),
    )  # fmt: skip


def run_demo(out: Path, seed: int = 0, device: str = "auto", track: Track = silent) -> Fitted:
    """Draw the demo's images into `out/data` and run all stages in `out/run`; continues like `fit`."""
    data = draw_demo(out / "data", seed=seed, track=track)
    fitted = fit(data, out / "run", demo_settings(seed, device), track=track)
    assert fitted is not None
    return fitted
