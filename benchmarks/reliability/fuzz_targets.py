"""What fuzz.py feeds with spoiled files: every reader of a file that a stranger may have made."""

import contextlib
import dataclasses
import io
import json
import os
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import torch
from benchmarks.reliability import fuzz_mutate as mutate
from benchmarks.reliability.fuzz_files import SIZE, coco, encoded, image_folder, tar, twin
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import TensorDataset

import tagseg
from tagseg.data import listing
from tagseg.data.images import image_size, read_image, read_mask_file
from tagseg.data.prepare import prepare
from tagseg.data.read import read_dataset
from tagseg.data.true_masks import load_mask
from tagseg.errors import RunError
from tagseg.evaluate.gain import calibration_images
from tagseg.evaluate.quality import ClassQuality, ImageQuality, read_quality, write_quality
from tagseg.evaluate.scores import Evaluation, Scores, read_evaluation
from tagseg.importing.import_masks import import_masks
from tagseg.importing.meaning import read_label_map, read_mask_by
from tagseg.masks.foreign_maps import read_foreign_maps
from tagseg.masks.map_files import read_maps, write_maps
from tagseg.networks.backbones import weight_options
from tagseg.networks.segmenters import empty_segmenter
from tagseg.prediction.lines import read_predictions
from tagseg.rca.network import build_network
from tagseg.rca.oaa import read_accumulated
from tagseg.rca.train import load_network
from tagseg.run.decisions import (
    Decision,
    accepted_masks,
    check_database,
    decision_digests,
    decisions,
    record_decision,
)
from tagseg.run.folder import Run
from tagseg.run.history import read_history
from tagseg.run.open import open_run
from tagseg.segment.labels import class_values
from tagseg.settings.data import DataSettings
from tagseg.settings.settings import Settings
from tagseg.system.records import Record, read_record, record_kinds
from tagseg.training.checkpoint import save_tensors
from tagseg.training.loop import Epoch, Training, run_epochs
from tagseg.training.optimizer import build_optimizer

LENIENT = DataSettings(min_images=1, max_megapixels=1.0)
SMALL = Settings.from_dict({"device": "cpu", "workers": 0, "data": {"min_images": 1},
                            "train": {"backbone": "test_resnet", "weights": "random", "neck": 8},
                            "rca": {"slots": 4, "prototypes": 2}})  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A file in a folder, what is valid there, how that is spoiled, and what reads it; errors must name one of `names`
    (by default the file). `share` is its share of the cases."""

    file: Path
    valid: tuple[bytes, ...]
    mutation: mutate.Mutation
    read: Callable[[], object]
    share: float
    names: tuple[str, ...] = ()
    text: bool = False


def targets(root: Path) -> dict[str, Target]:
    """Make valid files of all kinds below `root`, an empty folder, and return what reads them."""
    found = {**_data(root), **_shards(root), **_pictures(root), **_runs(root), **_reviews(root), **_networks(root)}
    return found | _records(root)


def _records(root: Path) -> dict[str, Target]:
    """A target for every kind of record, found in the code: a document with made-up values in all of its fields."""
    return {f"record {kind.__name__}": _record(root / f"record_{kind.__name__}.json", kind) for kind in record_kinds()}


def _record(file: Path, kind: type[Record]) -> Target:
    def read() -> None:
        with contextlib.suppress(RunError):  # its message is checked by the test of records; it names the file
            read_record(file, kind, "make it again")

    content = json.dumps(_example(msgspec.inspect.type_info(kind))).encode()
    return Target(file, (content,), mutate.some_json, read, 0.5, text=True)


def _example(kind: msgspec.inspect.Type) -> object:
    """Return a value of a type as JSON has it; it need not satisfy every bound."""
    inspect = msgspec.inspect
    if isinstance(kind, inspect.StructType):
        fields = [_example(field.type) for field in kind.fields]
        return (
            fields if kind.array_like else {f.encode_name: value for f, value in zip(kind.fields, fields, strict=True)}
        )
    if isinstance(kind, inspect.UnionType):
        return _example(next(one for one in kind.types if not isinstance(one, inspect.NoneType)))
    if isinstance(kind, inspect.LiteralType):
        return kind.values[0]
    if isinstance(kind, inspect.TupleType):
        return [_example(one) for one in kind.item_types]
    if isinstance(kind, inspect.ListType | inspect.VarTupleType | inspect.CollectionType):
        return [_example(kind.item_type)] * 2
    if isinstance(kind, inspect.DictType):
        return {str(_example(kind.key_type)): _example(kind.value_type)}
    plain = {inspect.IntType: 16, inspect.FloatType: 0.5, inspect.BoolType: True, inspect.StrType: "cat"}
    return plain.get(type(kind))


def _data(root: Path) -> dict[str, Target]:
    csv = (
        b"image,tags,split\na.png,cat dog,train\nb.png,dog,train\nsub/c.png,cat,val\n",
        b"file;label\r\na.png;cat|dog\r\n",
    )
    lines = (b'{"file_name": "a.png", "tags": ["cat", "dog"]}\n{"file_name": "b.png", "label": "dog"}\n',)
    voc_csv = (b"a 0 1\nb 1\nJPEGImages/sub/c.png 3\n",)
    xml = (b"<annotation><object><name>cat</name></object><object><name>dog</name></object></annotation>",)
    found = {}
    for name, valid, mutation, share in (
        ("tags.csv", csv, mutate.any_bytes, 12),
        ("metadata.csv", csv, mutate.any_bytes, 2),
        ("metadata.jsonl", lines, mutate.json_lines, 12),
        ("classes.txt", (b"cat\ndog\n",), mutate.any_bytes, 3),
    ):
        folder = image_folder(root / name.replace(".", "_"))
        if name == "classes.txt":
            (folder / "tags.csv").write_bytes(csv[0])
        read = _reader(folder)
        found[name] = Target(folder / name, valid, mutation, read, share, (str(folder),), True)
    layout = image_folder(root / "coco")
    (layout / "annotations").mkdir()
    file = layout / "annotations/instances_train.json"
    found["coco.json"] = Target(file, (coco(),), mutate.some_json, _reader(layout, "coco"), 14, (str(layout),), True)
    voc = root / "voc"
    image_folder(voc / "JPEGImages")
    (voc / "ImageSets/Segmentation").mkdir(parents=True)
    (voc / "Annotations").mkdir()
    read, names = _reader(voc), (str(voc),)
    listed = voc / "ImageSets/Segmentation/train.txt"
    found["voc list"] = Target(listed, voc_csv, mutate.any_bytes, read, 6, names, True)
    listed.write_bytes(b"a\n")
    again = image_folder(root / "voc_xml/JPEGImages").parent
    (again / "ImageSets/Main").mkdir(parents=True)
    (again / "ImageSets/Main/train.txt").write_bytes(b"a\n")
    (again / "Annotations").mkdir()
    found["voc xml"] = Target(
        again / "Annotations/a.xml", xml, mutate.any_bytes, _reader(again), 6, (str(again),), True
    )
    toml = root / "settings.toml"
    valid = (SMALL.to_toml().encode(), b'seed = 1\n[train]\nepochs = 2\nscale = [0.5, 1.0]\n[data]\nmasks = "x"\n')
    read = lambda: Settings.from_toml(toml).to_toml()  # noqa: E731
    found["settings.toml"] = Target(toml, valid, mutate.any_bytes, read, 12, text=True)
    return found


def _shards(root: Path) -> dict[str, Target]:
    folder = root / "shards"
    folder.mkdir()
    (folder / "classes.txt").write_bytes(b"cat\ndog\n")
    shard = folder / "train-0.tar"
    valid = (tar(tarfile.USTAR_FORMAT), tar(tarfile.GNU_FORMAT, long=True), tar(tarfile.PAX_FORMAT, long=True))

    def read() -> None:
        for sample in read_dataset(folder, LENIENT).samples:
            image_size(sample.image, 1.0)
            read_image(sample.image, 1.0)
            if sample.mask is not None:
                read_mask_file(sample.mask, SIZE)

    found = {"tar shard": Target(shard, valid, mutate.tar, read, 8, (str(folder),))}
    listed = root / "listed"
    listed.mkdir()
    for name in ("a.png", "b.png"):
        (listed / name).write_bytes(encoded("RGB", "PNG"))
    (listed / "tags.csv").write_bytes(b"image,tags\na.png,cat\nb.png,dog\n")
    os.environ["XDG_CACHE_HOME"] = str(root / "cache")
    state = None
    while state is None:  # for the first seconds the folder is too young
        time.sleep(0.5)
        state = listing.state_of(listed, LENIENT)
    listing.WORTHWHILE = 0
    listing.keep_listing(read_dataset(listed, LENIENT), LENIENT, state)
    file = listing.listing_file(listed, LENIENT)
    held = file.read_bytes()

    def read_kept() -> None:
        dataset = listing.read_listing(listed, LENIENT)
        if dataset is None:
            raise ValueError(f"{file}: not used")

    found["cached listing"] = Target(file, (held,), mutate.gzipped, read_kept, 3)
    return found


def _reviews(root: Path) -> dict[str, Target]:
    """What is found and decided about the masks of a run."""
    run = Run(root / "reviewed")
    mask = np.zeros(SIZE, np.uint8)
    record_decision(run, "a", Decision("accepted", (2,), 0.4), (mask, mask))
    record_decision(run, "b", Decision("rejected"))
    quality = ImageQuality("a", 0.5, {1: ClassQuality(0.5, 0.4, 0.9, 0.1, 0.3)}, {1: 0.9, 2: 0.1})
    write_quality(run, [quality, msgspec.structs.replace(quality, id="b")])

    def read_decisions() -> None:
        check_database(run)
        for name in decisions(run):
            accepted_masks(run, name, SIZE)
        decision_digests(run)
        record_decision(run, "c", Decision("flagged"))

    def read_scores() -> None:
        read_quality(run)

    kept, scores = run.decisions_file, run.quality_file
    return {
        "decisions.sqlite": Target(kept, (kept.read_bytes(),), mutate.any_bytes, read_decisions, 2),
        "quality.jsonl": Target(scores, (scores.read_bytes(),), mutate.json_lines, read_scores, 4, text=True),
    }


def _pictures(root: Path) -> dict[str, Target]:
    made = {kind: tuple(encoded(mode, kind) for mode in modes) for kind, modes in {
        "PNG": ("RGB", "P", "L", "RGBA", "I;16", "1", "LA"), "JPEG": ("RGB", "L", "CMYK"), "GIF": ("P", "L"),
        "TIFF": ("RGB", "L", "F"), "WEBP": ("RGB", "RGBA"), "BMP": ("RGB", "P"), "PPM": ("RGB", "L"),
    }.items()}  # fmt: skip
    found = {}
    for kind, valid in made.items():
        file = root / f"picture.{kind.lower()}"
        mutation, share = (mutate.png, 12) if kind == "PNG" else (mutate.any_bytes, 12 if kind == "JPEG" else 2)
        found[f"image {kind}"] = Target(file, valid, mutation, partial(_read_picture, file), share)
    mask, labels = root / "mask.png", root / "labelmap.txt"
    masks = tuple(encoded(mode, "PNG") for mode in ("P", "L", "1", "RGB"))
    found["mask PNG"] = Target(mask, masks, mutate.png, lambda: read_mask_file(mask, SIZE), 4)
    (root / "map").mkdir()
    labels, colours = root / "map/labelmap.txt", root / "map/colours.png"
    labels.write_bytes(b"background:0,0,0::\ncat:1,1,1::\ndog:2,2,2::\n")
    read = lambda: read_mask_by(colours, read_label_map(labels, ("cat", "dog")), SIZE)  # noqa: E731
    colours.write_bytes(masks[1])
    found["labelmap.txt"] = Target(
        labels, (labels.read_bytes(),), mutate.any_bytes, read, 4, ("labelmap.txt", "colours"), True
    )
    other = root / "map2/colours.png"
    other.parent.mkdir()
    again = lambda: read_mask_by(other, read_label_map(labels, ("cat", "dog")), SIZE)  # noqa: E731
    found["colour mask PNG"] = Target(other, masks, mutate.png, again, 3)
    return found


def _runs(root: Path) -> dict[str, Target]:
    data = image_folder(root / "photos")
    (data / "tags.csv").write_bytes(b"image,tags\na.png,cat\nb.png,dog\n")
    run = open_run(root / "run", data, SMALL)
    prepare(run)
    scores = Scores(0.5, (0.9, None, 0.1), 2, "train", 0.1)
    evaluation = json.dumps(msgspec.to_builtins(Evaluation(("background", "cat", "dog"), scores, scores))).encode()
    for stage in ("segment", "evaluate"):
        with run.stage(stage):
            run.evaluation_file.write_bytes(evaluation)
    dataset = read_dataset(data, LENIENT)
    names = json.dumps({"0": "background", "1": "cat", "2": "dog", "255": "void"}).encode()
    history = b'{"epoch": 1, "loss": 0.5}\n{"epoch": 2, "loss": 0.25}\n'
    line = b'{"image": "a.png", "mask": "a.png", "width": 10, "height": 12, "classes": []}\n'
    maps, accumulated = root / "a.npz", root / "accumulated"
    write_maps(maps, np.ones((2, 3, 4)), (1, 2))
    accumulated.mkdir()
    packed = io.BytesIO()
    np.save(packed, np.zeros((3, 56, 56), np.uint8))
    (accumulated / "accumulated.json").write_text(json.dumps({"grid": 56, "samples": [["a", [1, 2]], ["b", [1]]]}))
    kept = (accumulated / "accumulated.json").read_bytes()
    (accumulated / "accumulated.npy").write_bytes(packed.getvalue())
    index = accumulated / "accumulated.json"
    files = {name: root / "single" / name for name in ("classes.json", "history.jsonl", "predictions.jsonl")}
    noted = run.manifest_file
    copies = _copied(root, run)
    reading = {
        "manifest.json": (noted, mutate.some_json, lambda: _read_manifest(run), 4, True),
        "data.json": (copies["data"].data_file, mutate.some_json, lambda: prepare(copies["data"]), 4, True),
        "evaluation.json": (copies["evaluation"].evaluation_file, mutate.some_json,
                            lambda: read_evaluation(copies["evaluation"]).table(), 6, True),
    }  # fmt: skip
    found = {
        name: Target(file, (file.read_bytes(),), mutation, read, share, (str(root),), text)
        for name, (file, mutation, read, share, text) in reading.items()
    }
    (root / "single").mkdir()
    file = files["classes.json"]
    found["classes.json"] = Target(file, (names,), mutate.some_json, lambda: class_values(file, dataset), 5, text=True)
    told = files["history.jsonl"]
    found["history.jsonl"] = Target(told, (history,), mutate.json_lines, lambda: read_history(told), 4, text=True)
    lines = files["predictions.jsonl"]
    found["predictions.jsonl"] = Target(
        lines, (line * 2,), mutate.json_lines, lambda: read_predictions(lines), 4, text=True
    )
    found["maps .npz"] = Target(maps, (maps.read_bytes(),), mutate.archive, lambda: read_maps(maps), 8)
    theirs = root / "theirs.npz"
    np.savez(theirs, cat=np.eye(4, 3), dog=np.ones((4, 3)))
    read_theirs = lambda: read_foreign_maps(theirs, (1, 2), dataset.classes)  # noqa: E731
    found["foreign maps .npz"] = Target(theirs, (theirs.read_bytes(),), mutate.archive, read_theirs, 4)
    read_kept = lambda: [part.max() for part in (read_accumulated(accumulated)[0],) if part.size]  # noqa: E731
    both = (str(accumulated),)
    found["accumulated.json"] = Target(index, (kept,), mutate.some_json, read_kept, 2, both, True)
    second = twin(accumulated, root / "accumulated2")
    read_second = lambda: read_accumulated(second)[1]  # noqa: E731
    arrays = (packed.getvalue(),)
    found["accumulated.npy"] = Target(
        second / "accumulated.npy", arrays, mutate.any_bytes, read_second, 2, (str(second),)
    )
    back = root / "corrected.json"
    imported = lambda: import_masks(back, copies["import"].root, root / "imported", force=True)  # noqa: E731
    found["import COCO"] = Target(back, (coco(),), mutate.some_json, imported, 1.5, (str(root),), True)
    return found


def _networks(root: Path) -> dict[str, Target]:
    torch.manual_seed(0)
    about = {"classes": ["background", "cat"], "encoder": "test_resnet", "stride": 16, "network": "deeplabv3plus"}
    about |= {"predict_scales": [1.0], "predict_flip": True, "max_side": 64}
    model, classifier = root / "model", root / "classifier"
    save_tensors(model / "network.safetensors", empty_segmenter("test_resnet", 2, 16).state_dict(), about)
    (model / "network.json").write_text(json.dumps(about))
    second = twin(model, root / "model2")
    plain = SMALL.to_dict()
    told = {"classes": ["cat", "dog"], **{key: plain[key] for key in ("maps", "train", "rca")}}
    network = build_network(2, SMALL.train, SMALL.rca)
    save_tensors(classifier / "network.safetensors", network.state_dict(), told)
    start = root / "start.safetensors"
    import timm

    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), start, {"tagseg": "{}"})
    training = root / "training/checkpoint.safetensors"
    _train(training.parent, 1)
    read = {
        "exported model": (model / "network.safetensors", lambda: tagseg.load(model, "cpu"), 0.8),
        "network.json": (second / "network.json", lambda: tagseg.load(second, "cpu"), 0.4),
        "classifier": (classifier / "network.safetensors", lambda: load_network(classifier, torch.device("cpu")), 0.5),
        "start weights": (start, lambda: weight_options("test_resnet", str(start)), 0.7),
        "training state": (training, lambda: _train(training.parent, 2), 4),
    }
    ways = {".json": mutate.some_json, ".safetensors": mutate.safetensors}
    return {
        name: Target(file, (file.read_bytes(),), ways[file.suffix], work, share, (str(file.parent),))
        for name, (file, work, share) in read.items()
    }


def _train(folder: Path, total: int) -> None:
    """Train a network of 8 weights for an epoch or two, from the state in the folder where there is one."""
    torch.manual_seed(0)
    module = nn.Linear(3, 2)
    optimizer = build_optimizer(module.parameters(), [], 0.1, 1.0, 0.0)

    def learn(batches: Iterator[torch.Tensor], steps: int) -> dict[str, float]:
        optimizer.zero_grad()
        loss = module(torch.cat([images for (images,) in batches])).square().sum()
        loss.backward()
        optimizer.step()
        return {"loss": loss.item()}

    def open_epoch(epoch: int, seed: int, resumed: bool) -> contextlib.AbstractContextManager[Epoch]:
        return contextlib.nullcontext(Epoch(TensorDataset(torch.ones(1, 3)), learn))

    modules: dict[str, nn.Module] = {"network": module}
    training = Training("fuzz", folder, modules, optimizer, lambda epoch, progress: 0.1, total, batch=1, seed=0)
    run_epochs(training, open_epoch)


def _reader(folder: Path, layout: str = "auto") -> Callable[[], object]:
    settings = dataclasses.replace(LENIENT, layout=layout)  # type: ignore[arg-type]

    def read() -> None:
        dataset = read_dataset(folder, settings)
        for sample in dataset.samples:
            # What is written for an image goes by its id: nowhere else than below a run's folders.
            if ".." in Path(sample.id).parts or Path(sample.id).is_absolute():
                raise AssertionError(f"id {sample.id!r} leaves the run folder")
            if sample.mask is not None:
                load_mask(sample, dataset, SIZE)

    return read


def _read_manifest(run: Run) -> None:
    calibration_images(run)
    run.done("train")
    run.require_unchanged("evaluate", run.evaluation_file)


def _read_picture(file: Path) -> None:
    for read in (lambda: image_size(file, 1.0), lambda: read_image(file, 1.0), lambda: read_image(file, 1.0, 4)):
        read()


def _copied(root: Path, run: Run) -> dict[str, Run]:
    return {name: Run(twin(run.root, root / f"run_{name}")) for name in ("data", "evaluation", "import")}
