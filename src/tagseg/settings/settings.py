"""All settings of a run.

Precedence: defaults < a preset < a TOML file < flags. The resolved settings are written into the run folder.
"""

import dataclasses
import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from annotated_types import Ge, Le
from cyclopts import Group, Parameter

from tagseg.settings.bounds import check_fields
from tagseg.settings.crf import CrfSettings
from tagseg.settings.data import DataSettings
from tagseg.settings.features import FeatureSettings
from tagseg.settings.localise import LocaliseSettings
from tagseg.settings.masks import MaskSettings
from tagseg.settings.rca import RcaSettings
from tagseg.settings.report import ReportSettings
from tagseg.settings.segment import SegmentSettings
from tagseg.settings.toml import build, parse_toml, plain, to_toml, toml_bytes
from tagseg.settings.train import TrainSettings
from tagseg.system.process import cores

Rival = Literal["walk", "correlation", "recam", "saliency"]
Baseline = Literal["cam", "oaa", "eps", "walk", "correlation", "recam", "saliency"]
MapKind = Literal["posterior", "refined", "coarse"]


def _panel(title: str, order: int) -> Parameter:
    return Parameter(group=Group(title, sort_key=order))


@dataclass(frozen=True)
class Settings:
    """All settings of a run."""

    seed: Annotated[int, Ge(0), Le(2**32 - 1)] = 0
    """Seed of all random numbers."""

    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1, mps. auto uses a GPU if there is one."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of the networks' forward and backward passes."""

    compile: bool = False
    """Compile the networks with torch.compile for training. It takes about a minute at the start and makes long
    trainings on a GPU faster; results differ by rounding."""

    workers: Annotated[int, Ge(0), Le(1024)] = field(default_factory=lambda: min(cores(), 8))
    """Processes that load images and make masks (0: the main process does both). By default one per core, up to 8."""

    cache: bool = True
    """Cache the listing of a data folder of 10,000 images or more in the user's cache folder (XDG_CACHE_HOME/tagseg,
    by default ~/.cache/tagseg), so that it opens in seconds the next time. Changes of the folder are detected."""

    maps: Baseline = "cam"
    """Where maps come from. cam: the trained network, image by image; oaa: the maximum of an image's maps over the
    epochs of training (OAA, ICCV 2019); eps: a network that also learns from saliency maps (EPS, CVPR 2021; needs
    data.saliency). With train.method = frozen, rivals to compare with: walk and correlation spread class activation
    maps among cells that look alike (IRN, CVPR 2019; SEAM, CVPR 2020); recam: maps of a head that tells the tags'
    regions apart (ReCAM, CVPR 2022); saliency: each image's saliency map, which its tags share by their class
    activation maps (needs data.saliency)."""

    data: Annotated[DataSettings, _panel("Data", 2)] = field(default_factory=DataSettings)
    train: Annotated[TrainSettings, _panel("Classification network", 3)] = field(default_factory=TrainSettings)
    rca: Annotated[RcaSettings, _panel("Memory bank, contrast, aggregation", 4)] = field(default_factory=RcaSettings)
    localise: Annotated[LocaliseSettings, _panel("Maps", 5)] = field(default_factory=LocaliseSettings)
    masks: Annotated[MaskSettings, _panel("Masks", 6)] = field(default_factory=MaskSettings)
    crf: Annotated[CrfSettings, _panel("Dense CRF", 7)] = field(default_factory=CrfSettings)
    segment: Annotated[SegmentSettings, _panel("Segmentation network", 8)] = field(default_factory=SegmentSettings)
    report: Annotated[ReportSettings, _panel("Report", 9)] = field(default_factory=ReportSettings)
    features: Annotated[FeatureSettings, _panel("Features", 10)] = field(default_factory=FeatureSettings)

    def __post_init__(self) -> None:
        check_fields(self, "setting ")
        if self.localise.kind == "posterior" and not (self.rca.aggregation and self.rca.background):
            raise ValueError(
                "setting localise.kind must be refined, coarse or auto unless rca.aggregation and rca.background are "
                "on, got 'posterior'"
            )
        if self.train.method == "frozen" and self.maps in ("oaa", "eps"):
            raise ValueError(
                f"setting maps must be cam or a rival ({', '.join(get_args(Rival))}) with train.method = frozen, got "
                f"{self.maps!r}: nothing is trained in epochs"
            )
        if self.train.method != "frozen" and self.maps in get_args(Rival):
            raise ValueError(
                f"setting train.method must be frozen with maps = {self.maps}, got {self.train.method!r}: rivals are "
                "computed from cached features"
            )
        if self.maps in get_args(Rival) and self.localise.kind not in ("auto", "coarse"):
            raise ValueError(
                f"setting localise.kind must be auto or coarse with maps = {self.maps}, got {self.localise.kind!r}: "
                "rivals begin with class activation maps"
            )
        if self.segment.start == "classifier":
            if self.train.method == "frozen":
                raise ValueError(
                    "setting train.method must be finetuned with segment.start = classifier, got 'frozen': a frozen "
                    "backbone has learned nothing; add --segment.start weights"
                )
            if self.localise.maps_from:
                raise ValueError(
                    "setting localise.maps-from must be empty with segment.start = classifier, got "
                    f"{self.localise.maps_from!r}: no classification network is trained; add --segment.start weights"
                )
        if self.maps == "oaa" and 0 < self.train.epochs <= self.warm_epochs():
            raise ValueError(
                f"setting train.epochs must be above {self.warm_epochs()} with maps = oaa, which accumulates maps "
                f"after rca.warmup (at least 1 epoch), got {self.train.epochs}"
            )

    def warm_epochs(self) -> int:
        """Return the number of epochs after which maps are good enough to be accumulated (maps = oaa)."""
        return max(self.rca.warmup, 1)

    def mask_rule(self) -> MaskSettings:
        """Return the mask settings with the background rule that auto stands for."""
        return self.masks.resolved(self.has_posteriors())

    def has_posteriors(self) -> bool:
        """Return whether maps are probabilities: posteriors, shares of saliency, or another method's probabilities."""
        if self.localise.maps_from:
            return self.localise.maps_hold == "probabilities"
        if self.maps == "saliency":
            return True
        return self.maps != "oaa" and map_kind(self.localise, self.rca, self.maps) == "posterior"

    def uses_saliency(self) -> bool:
        """Return whether maps or masks depend on saliency maps."""
        return self.masks.saliency or self.maps in ("eps", "saliency")

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as nested plain values (tuples become lists)."""
        values: dict[str, Any] = plain(dataclasses.asdict(self))
        return values

    def to_toml(self) -> str:
        """Return the settings as TOML text that `Settings.from_toml` reads back."""
        return to_toml(self.to_dict())

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str = "settings") -> "Settings":
        """Build settings from nested plain values; absent ones keep their default.

        Raises:
            ValueError: on an unknown name or a wrong value, naming `source` and the setting.
        """
        built = build(cls, values, source)
        assert isinstance(built, cls)
        return built

    @classmethod
    def from_toml(cls, path: str | Path) -> "Settings":
        """Read settings from a TOML file.

        Raises:
            ValueError: when the file cannot be read, is not TOML, or has an unknown setting or a wrong value.
        """
        return _from_toml(toml_bytes(path), str(path))


@functools.lru_cache(maxsize=16)
def _from_toml(content: bytes, source: str) -> Settings:
    """Build settings from a file's content; a run's are read again and again, which takes 0.03 s, and never change."""
    return Settings.from_dict(parse_toml(content, source), source)


def map_kind(localise: LocaliseSettings, rca: RcaSettings, maps: Baseline = "cam") -> MapKind:
    """Return the kind of map that `localise.kind` stands for."""
    if localise.kind != "auto":
        return localise.kind
    if maps in get_args(Rival):
        return "coarse"
    return "posterior" if rca.aggregation and rca.background and maps != "eps" else "refined"
