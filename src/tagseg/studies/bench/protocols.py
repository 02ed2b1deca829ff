"""Protocols of published results: which images, which settings, and the published scores.

`tagseg bench` follows a protocol from start to end. A protocol is a record, so that tests can follow one on a stand-in
with the same layout and its own counts; the command line offers only the published ones.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from tagseg.settings.presets import Preset, preset_values
from tagseg.settings.settings import Settings

Name = Literal["voc2012", "coco2014"]
Method = Literal["oaa", "eps"]
BackboneName = Literal["vgg16", "resnet38", "resnet50", "resnet101"]

PublishedFigure = Literal["pseudo_masks", "segmenter", "segmenter_crf", "test"]
"""What an mIoU is of: the pseudo-masks of training images; the segmentation network on val, without and with the dense
CRF; the network on test."""

RCA = "Zhou et al., CVPR 2022 (arXiv 2203.09653)"


@dataclass(frozen=True)
class Published:
    """A published mIoU in per cent of RCA on top of a method, and its source."""

    figure: PublishedFigure
    method: Method
    miou: float
    source: str = RCA


@dataclass(frozen=True)
class Protocol:
    """The data that a protocol requires, the preset it starts from, and published scores to compare with.

    lists: number of images of each list by its name: a list in ImageSets/Segmentation (VOC), or the part of an instance
    file's name after instances_ (COCO; only images with annotations count). In order: the training images, for VOC also
    those with official masks, and the validation images. optional: the same for lists that may be absent. classes:
    number of classes without background. get: how to get the data, and what its folder must look like.
    """

    name: str
    preset: Preset
    lists: Mapping[str, int]
    classes: int
    published: tuple[Published, ...]
    get: str
    optional: Mapping[str, int]

    @property
    def layout(self) -> str:
        """Layout of the data folder, voc or coco."""
        layout: str = preset_values(self.preset)["data"]["layout"]
        return layout


_GET_VOC = """\
VOC 2012: unpack http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar. It contains the folder
  VOCdevkit/VOC2012 with JPEGImages, Annotations (from which the tags come), SegmentationClass, and the lists train.txt
  and val.txt in ImageSets/Segmentation.
List of the 10,582 training images: write ImageSets/Segmentation/train_aug.txt with one name per line: the images of
  VOC's train and of SBD (http://home.bharathh.info/pubs/codes/SBD/download.html) that are not in VOC's val.
Test images: register at http://host.robots.ox.ac.uk:8080, put the images into the same folders and their list into
  ImageSets/Segmentation/test.txt. Without them no submission is written.
Saliency maps, which EPS requires: saliency/NAME.png or .jpg next to JPEGImages, one per image of train_aug, white
  where something stands out, by any detector (the authors of EPS offer theirs at https://github.com/halbielee/EPS).
Then: tagseg bench voc2012 --data VOCdevkit/VOC2012"""

_GET_COCO = """\
COCO 2014: unpack http://images.cocodataset.org/zips/train2014.zip, http://images.cocodataset.org/zips/val2014.zip and
  http://images.cocodataset.org/annotations/annotations_trainval2014.zip into one folder. It then contains the images
  in train2014/ and val2014/, annotations/instances_train2014.json and annotations/instances_val2014.json.
Saliency maps, which EPS requires: saliency/NAME.png or .jpg next to them, one per training image, white where
  something stands out, by any detector (the authors of EPS offer theirs at https://github.com/halbielee/EPS).
Then: tagseg bench coco2014 --data COCO"""

PROTOCOLS: dict[Name, Protocol] = {
    "voc2012": Protocol(
        name="voc2012",
        preset="paper-voc",
        lists={"train_aug": 10_582, "train": 1_464, "val": 1_449},
        optional={"test": 1_456},
        classes=20,
        published=(
            Published("segmenter_crf", "oaa", 71.1),
            Published("test", "oaa", 71.6),
            Published("pseudo_masks", "eps", 74.1),
            Published("segmenter_crf", "eps", 72.2),
            Published("test", "eps", 72.8),
        ),
        get=_GET_VOC,
    ),
    "coco2014": Protocol(
        name="coco2014",
        preset="paper-coco",
        lists={"train2014": 82_081, "val2014": 40_137},
        optional={},
        classes=80,
        published=(Published("segmenter_crf", "oaa", 35.7), Published("segmenter_crf", "eps", 36.8)),
        get=_GET_COCO,
    ),
}


# torchvision's weights, which were usual when the paper appeared; timm's own defaults are newer. VGG16 and ResNet-38
# have only one set. The paper does not give the bank's channels for ResNets; they get VGG16's 512.
_BACKBONES: dict[BackboneName, dict[str, Any]] = {
    "vgg16": {},
    "resnet38": {"backbone": "resnet38", "neck": 512},
    "resnet50": {"backbone": "resnet50.tv_in1k", "neck": 512},
    "resnet101": {"backbone": "resnet101.tv_in1k", "neck": 512},
}


def paper_values(protocol: str, method: str = "oaa", backbone: str = "vgg16", saliency: bool = True) -> dict[str, Any]:
    """Return the paper's settings for a protocol as nested plain values.

    They are the protocol's preset with the given method under RCA and the given backbone. With `saliency`, background
    comes from saliency maps, as in the paper; with EPS it always does.

    Raises:
        ValueError: when there is no such protocol, method or backbone.
    """
    for flag, got, known in (
        ("PROTOCOL", protocol, get_args(Name)),
        ("--method", method, get_args(Method)),
        ("--backbone", backbone, get_args(BackboneName)),
    ):
        if got not in known:
            raise ValueError(f"{flag} must be one of {', '.join(known)}, got {got}")
    return _values(PROTOCOLS[protocol], method, _BACKBONES[backbone], saliency)  # type: ignore[index]


def paper_settings(
    protocol: Name, method: Method = "oaa", backbone: BackboneName = "vgg16", saliency: bool = True
) -> Settings:
    """Return the paper's settings for a protocol, to be given to `tagseg.studies.bench.run.bench`."""
    return Settings.from_dict(paper_values(protocol, method, backbone, saliency), f"bench {protocol}")


def changed_settings(settings: Settings, protocol: Protocol) -> list[str]:
    """Return one line per setting that differs from the paper's.

    The choice of backbone, the seed, and settings of the machine, of the data's place and of the report do not count.
    """
    values = _values(protocol, settings.maps, {}, settings.maps == "eps" or settings.masks.saliency)
    paper, own = _flat(Settings.from_dict(values).to_dict()), _flat(settings.to_dict())
    free = {"seed", "device", "workers", "cache", "data.saliency", "train.backbone", "train.weights", "train.neck"}
    free |= {"segment.weights", "report.title", "report.examples"}
    return [
        f"{name} {own[name]!r}, not {paper[name]!r}" for name in paper if own[name] != paper[name] and name not in free
    ]


def _values(protocol: Protocol, method: str, train: Mapping[str, Any], saliency: bool) -> dict[str, Any]:
    values = copy.deepcopy(preset_values(protocol.preset))
    values["maps"] = method
    values["train"] |= train
    values["masks"] = {"saliency": saliency or method == "eps"}
    values["segment"]["encoder"] = "resnet101.tv_in1k"
    values["data"]["coco_protocol"] = protocol.layout == "coco"
    return values


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
