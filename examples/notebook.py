"""The notebook: from tags to masks, cell by cell. docs/notebook.md shows it with its pictures."""

# %% [markdown]
# # A notebook: from tags to masks
#
# Everything tagseg does, step by step, on drawn images. It takes about five minutes on two CPU cores and needs neither
# data nor network. `examples/notebook.py` is a script with cells: open it in Jupyter (with jupytext), VS Code, PyCharm
# or Spyder and run it cell by cell, or run it as a whole with `python examples/notebook.py`. The pictures come from
# such a run.

# %%
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

import tagseg
from tagseg.data.images import read_image, read_mask_file
from tagseg.data.records import Sample
from tagseg.demo.draw import draw_demo
from tagseg.evaluate.ranking import worst_first
from tagseg.masks.localise import localise_image
from tagseg.masks.mask_files import mask_file
from tagseg.masks.overlay import overlay
from tagseg.masks.palette import class_colours
from tagseg.rca.train import load_network
from tagseg.review.assess import assess
from tagseg.run.folder import Run
from tagseg.settings.localise import LocaliseSettings
from tagseg.studies.demo import demo_settings

# %% [markdown]
# You can change these values. Fewer images or epochs are faster and give worse masks.

# %% parameters
OUT = Path("runs/notebook")
TRAIN, VAL = 260, 50
SETTINGS = demo_settings(seed=0)

# %% [markdown]
# ## Images and their tags
#
# Each image has one to three tags, and training uses nothing else. The true masks that are drawn with the images are
# used only for the scores at the end.

# %%
data = draw_demo(OUT / "data", TRAIN, VAL)
dataset = tagseg.read_dataset(data, SETTINGS.data)
print(dataset.classes)
shown = dataset.split("train")[:5]
for sample in shown:
    print(sample.id, [dataset.classes[tag - 1] for tag in sample.tags])


def row(name: str, pictures: list[Image.Image]) -> Image.Image:
    """Put pictures next to each other, and save them as a file."""
    sheet = Image.new("RGB", (sum(one.width + 4 for one in pictures) - 4, max(one.height for one in pictures)), "white")
    left = 0
    for one in pictures:
        sheet.paste(one, (left, 0))
        left += one.width + 4
    (OUT / "pictures").mkdir(exist_ok=True)
    sheet.save(OUT / "pictures" / f"notebook_{name}.jpg", quality=88)
    return sheet


images = [read_image(sample.image) for sample in shown]
row("images", images)

# %% [markdown]
# ![Five drawn images](pictures/notebook_images.jpg)
#
# `inspect` checks the data: it counts images and finds classes that never appear apart, broken and duplicate files.

# %%
found = tagseg.inspect(dataset, SETTINGS.data)
print(found.per_class["train"], found.never_apart, found.broken)

# %% [markdown]
# ## The classification network and its memory bank
#
# It learns the tags and fills a bank with regions of every class. `fit_until` stops after a stage, and a later call
# resumes there.

# %%
tagseg.fit_until(data, OUT / "run", "train", SETTINGS)
run = Run(OUT / "run")
network, classes = load_network(run.network, torch.device("cpu"))
print("prototypes of background and of each class:", network.exists.sum(1).tolist())

# %% [markdown]
# ## Maps: coarse, and from the bank
#
# The coarse map is the plain class activation map: which cells of the image vote for the tag. It lights up what
# distinguishes the classes, not whole objects. The posterior uses the bank instead: which share of a cell's attention
# goes to the prototypes of the class rather than to those of background? Below is the first tag of each image.


# %%
def heat(image: Image.Image, tag: int, kind: Literal["coarse", "posterior"]) -> Image.Image:
    """Lay the map of one tag over its image."""
    settings = LocaliseSettings(max_side=SETTINGS.localise.max_side, kind=kind)
    strength = Image.fromarray(localise_image(network, image, (tag,), settings)[0].numpy()).resize(image.size)
    share = np.asarray(strength)[..., None] * 0.85
    colour = np.array(class_colours(len(classes))[tag], np.float32)
    grey = np.asarray(image.convert("L"))[..., None]  # so that the colour of the class is visible
    return Image.fromarray((grey * (1 - share) + colour * share).astype(np.uint8))


row("coarse", [heat(image, sample.tags[0], "coarse") for image, sample in zip(images, shown, strict=True)])

# %% [markdown]
# ![Coarse maps](pictures/notebook_coarse.jpg)

# %%
row("posterior", [heat(image, sample.tags[0], "posterior") for image, sample in zip(images, shown, strict=True)])

# %% [markdown]
# ![Posteriors](pictures/notebook_posterior.jpg)
#
# ## Masks
#
# Background gets what the tags leave over, the dense CRF moves borders to the edges of the image, and pixels where the
# two disagree are unsure (255, light here).

# %%
tagseg.fit_until(data, OUT / "run", "masks", SETTINGS)


def masked(sample: Sample, folder: Path) -> Image.Image:
    """Lay a mask over its image."""
    return overlay(read_image(sample.image).convert("L").convert("RGB"), read_mask_file(mask_file(folder, sample.id)))


row("masks", [masked(sample, run.masks) for sample in shown])

# %% [markdown]
# ![Masks](pictures/notebook_masks.jpg)
#
# ## A segmentation network, scores, a report
#
# The network learns from these masks and needs no tags to predict. The scores compare with the true masks; the report
# is `runs/notebook/run/report.html`.

# %%
fitted = tagseg.fit(data, OUT / "run", SETTINGS)
print(fitted.evaluation.table())

# %%
predictor = tagseg.load(OUT / "run")
row("new", [predictor(sample.image).overlay() for sample in dataset.split("val")[:5]])

# %% [markdown]
# ![New images, segmented without tags](pictures/notebook_new.jpg)
#
# ## Which masks to look at first
#
# No true masks are needed for this: the score says how well mask and segmentation network agree.

# %%
quality = assess(run)
for one in worst_first(dataset, quality, set())[:5]:
    print(f"{one.score:.2f}", one.id, one.reason)
