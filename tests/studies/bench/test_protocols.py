import dataclasses
from typing import get_args

import pytest

from tagseg.networks.backbones import is_known
from tagseg.settings.presets import preset
from tagseg.studies.bench.protocols import PROTOCOLS, BackboneName, changed_settings, paper_settings, paper_values


def test_the_protocols_are_those_of_the_publications() -> None:
    voc, coco = PROTOCOLS["voc2012"], PROTOCOLS["coco2014"]
    assert dict(voc.lists) == {"train_aug": 10582, "train": 1464, "val": 1449} and dict(voc.optional) == {"test": 1456}
    assert dict(coco.lists) == {"train2014": 82081, "val2014": 40137} and not coco.optional
    assert (voc.classes, coco.classes, voc.layout, coco.layout) == (20, 80, "voc", "coco")
    figures = {(one.figure, one.method): one.miou for one in voc.published}
    assert figures == {("segmenter_crf", "oaa"): 71.1, ("test", "oaa"): 71.6, ("pseudo_masks", "eps"): 74.1,
                       ("segmenter_crf", "eps"): 72.2, ("test", "eps"): 72.8}  # fmt: skip
    assert {one.method: one.miou for one in coco.published} == {"oaa": 35.7, "eps": 36.8}
    assert all("arXiv 2203.09653" in one.source for one in (*voc.published, *coco.published))


def test_the_papers_settings_start_from_the_preset() -> None:
    plain = paper_settings("voc2012", saliency=False)
    base = preset("paper-voc")
    segment = dataclasses.replace(base.segment, encoder="resnet101.tv_in1k")
    assert plain == dataclasses.replace(base, segment=segment)
    eps = paper_settings("voc2012", "eps", saliency=False)
    assert eps.maps == "eps" and eps.masks.saliency  # EPS always takes background from saliency maps
    assert paper_settings("voc2012").masks.saliency and not plain.masks.saliency
    coco = paper_settings("coco2014", "oaa", "resnet50")
    assert coco.data.coco_protocol and coco.data.layout == "coco"
    assert (coco.train.backbone, coco.train.neck, coco.train.stride) == ("resnet50.tv_in1k", 512, 8)
    assert preset("paper-voc") == base  # the preset itself is unchanged


@pytest.mark.parametrize("backbone", get_args(BackboneName))
def test_every_backbone_is_available(backbone: BackboneName) -> None:
    found = paper_settings("voc2012", "eps", backbone)
    assert is_known(found.train.backbone) and found.train.backbone.startswith(backbone)
    assert is_known(found.segment.encoder) and found.segment.network == "deeplabv2"
    assert changed_settings(found, PROTOCOLS["voc2012"]) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("voc2007", "oaa", "vgg16"), "PROTOCOL must be one of voc2012, coco2014, got voc2007"),
        (("voc2012", "cam", "vgg16"), "--method must be one of oaa, eps, got cam"),
        (("voc2012", "eps", "vit"), "--backbone must be one of vgg16, resnet38, resnet50, resnet101, got vit"),
    ],
)
def test_unknown_names_are_named(arguments: tuple[str, str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paper_values(*arguments)


def test_settings_that_differ_from_the_papers_are_listed() -> None:
    paper = paper_settings("voc2012", saliency=False)
    own = dataclasses.replace(
        paper,
        seed=7,
        device="cpu",
        workers=1,
        train=dataclasses.replace(paper.train, batch=4, weights="my.safetensors"),
    )
    assert changed_settings(own, PROTOCOLS["voc2012"]) == ["train.batch 4, not 8"]
    longer = dataclasses.replace(own, localise=dataclasses.replace(own.localise, scales=(1.0,)))
    assert changed_settings(longer, PROTOCOLS["voc2012"])[1:] == ["localise.scales [1.0], not [0.5, 1.0, 2.0]"]
