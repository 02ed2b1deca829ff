"""What all tests share: checked shapes, fixed seeds, no network, and the optional real data."""

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import json
import multiprocessing
import os
import random
import shutil
import socket
import threading
import time
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import hypothesis
import jaxtyping
import numpy as np
import pytest
import torch
from beartype import BeartypeConf, beartype

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from PIL import Image

    from tagseg.data.records import Dataset
    from tagseg.networks.segmenters import Segmenter
    from tagseg.run.folder import Run
    from tagseg.settings.settings import Settings

# Hugging Face's client reads this when it is imported, child processes inherit it: no test reaches for the network.
os.environ["HF_HUB_OFFLINE"] = "1"

# Tensors in tests are tiny: more threads only get in one another's way.
torch.set_num_threads(1)


def _has_shapes(hint: object) -> bool:
    """Tell whether a type hint holds a shape, at any depth."""
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(map(_has_shapes, hint if isinstance(hint, list) else get_args(hint)))


def _resolved(hint: object, names: dict[str, Any]) -> Any:
    """Return a type hint without names in quotes; Any where a name is known to type checkers alone."""
    try:
        return get_type_hints(types.SimpleNamespace(__annotations__={"hint": hint}), names, include_extras=True)["hint"]
    except Exception:
        return Any


_check_shapes = jaxtyping.jaxtyped
_check_types = beartype(conf=BeartypeConf(violation_type=jaxtyping.TypeCheckError))


def _checked(checked: Any = None, *, typechecker: Any) -> Any:
    """Check the calls of a function, or of a dataclass, as `jaxtyping.jaxtyped` does.

    That one binds arguments and notes sizes at every call, which takes longer than most functions take; those without
    shapes need the type checker alone.
    """
    if checked is None:
        return functools.partial(_checked, typechecker=typechecker)
    if inspect.isclass(checked):
        if dataclasses.is_dataclass(checked) and "__init__" in vars(checked):
            checked.__init__ = _checked(checked.__init__, typechecker=typechecker)  # type: ignore[misc]
        return checked
    written = checked.__annotations__
    hints = {name: _resolved(hint, checked.__globals__) for name, hint in written.items()}
    if any(map(_has_shapes, hints.values())):
        return _check_shapes(checked, typechecker=typechecker)
    checked.__annotations__ = hints
    checking = _check_types(checked)
    checking.__annotations__ = checked.__annotations__ = written
    return checking


# From here on the types and shapes in tagseg's signatures are checked at every call.
jaxtyping.jaxtyped = _checked
jaxtyping.install_import_hook("tagseg", "beartype.beartype")

hypothesis.settings.register_profile("tagseg", deadline=None, derandomize=True)
hypothesis.settings.load_profile("tagseg")


@pytest.fixture(scope="session")
def chromium_program() -> str:
    """Return the path of a browser, or skip the test."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("no chromium or chromium-browser on this machine")
    return program


@pytest.fixture(scope="module")
def chromium(chromium_program: str) -> "Iterator[Any]":
    """Return a headless browser, for one module only because its event loop disturbs other tests."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright, which drives the browser, is missing")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def serving() -> "Callable[[Any], contextlib.AbstractContextManager[int]]":
    """Return a function that serves a page's app in a thread while its block runs, and yields the port."""
    from tagseg.review.server import listen, make_server

    @contextlib.contextmanager
    def serving(app: Any) -> "Iterator[int]":
        with listen(0) as listener:
            server = make_server(app)
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
            thread.start()
            try:
                yield listener.getsockname()[1]
            finally:
                server.should_exit = True
                thread.join()

    return serving


@pytest.fixture(scope="session", autouse=True)
def places_are_measured_once() -> "Iterator[None]":
    """Measure where the cells of a network lie only once: tests build the same small networks again and again, and
    measuring takes longer than what they do with them."""
    from tagseg.networks import backbones, registration, segmenters

    known: dict[tuple[object, ...], float] = {}

    def measured_shift(module: torch.nn.Module, last: "Callable[[Any], Any]", *sizes: int) -> float:
        content = hashlib.blake2b()
        for value in module.state_dict().values():
            content.update(b"" if value.is_meta else value.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
        key = (str(module), content.digest(), last.__code__, sizes)
        if key not in known:
            known[key] = registration.measured_shift(module, last, *sizes)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        for user in (backbones, segmenters):
            patch.setattr(user, "measured_shift", measured_shift)
        yield


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Start every test from the same random state."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder `shared` beside the checkout, with optional real `data` and `weights`."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "data").is_dir():
        pytest.skip(f"no real data: {folder / 'data'} does not exist")
    return folder


@pytest.fixture(scope="session")
def draw_discs() -> "Callable[..., tuple[Image.Image, Image.Image]]":
    """Return a function that draws discs on 64 x 48 pixels of grey noise, from left to right, and their mask.

    `discs` maps the colour of each disc to its class id; `top` and `diameter` are in pixels.
    """
    from PIL import Image, ImageDraw

    def draw(seed: int, discs: "Mapping[str, int]", top: int, diameter: int) -> tuple[Image.Image, Image.Image]:
        noise = np.random.default_rng(seed).integers(90, 160, (48, 64, 3), np.uint8)
        image, mask = Image.fromarray(noise), Image.new("L", (64, 48))
        for number, (colour, class_id) in enumerate(discs.items()):
            left = 4 + 28 * number
            box = (left, top, left + diameter, top + diameter)
            ImageDraw.Draw(image).ellipse(box, fill=colour)
            ImageDraw.Draw(mask).ellipse(box, fill=class_id)
        return image, mask

    return draw


@pytest.fixture(scope="session")
def draw_folder(draw_discs: "Callable[..., tuple[Image.Image, Image.Image]]") -> "Callable[..., Path]":
    """Return a function that draws a data folder: one image of red and blue discs per name, and tags.csv.

    The first `masked` images get a true mask (1 blue, 2 red); the last `val` images are for validation.
    """

    def draw(data: Path, names: "Sequence[str]", masked: int, val: int = 0) -> Path:
        for folder in ("images", "masks"):
            (data / folder).mkdir(parents=True)
        rows = ["image,tags,split" if val else "image,tags"]
        for i, name in enumerate(names):
            discs = ({"red": 2}, {"blue": 1}, {"red": 2, "blue": 1})[i % 3]
            image, mask = draw_discs(i, discs, top=8 + i, diameter=24)
            image.save(data / "images" / f"{name}.png")
            if i < masked:
                mask.save(data / "masks" / f"{name}.png")
            split = "val" if i >= len(names) - val else "train"
            rows.append(f"{name}.png,{' '.join(discs)}" + (f",{split}" if val else ""))
        (data / "tags.csv").write_text("\n".join(rows) + "\n")
        return data

    return draw


@pytest.fixture(scope="session")
def discs(draw_folder: "Callable[..., Path]", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of nine training images of red and blue discs; the first four have true masks."""
    return draw_folder(tmp_path_factory.mktemp("discs") / "data", [str(i) for i in range(9)], masked=4)


@pytest.fixture(scope="session")
def draw_squares() -> "Callable[..., Dataset]":
    """Return a function that draws a data set: `count` noisy images, 64 pixels wide, each with a red or a green
    rectangle, the last with both; on request with saliency maps of half the size."""
    from PIL import Image

    from tagseg.data.records import Dataset, Sample

    def draw(folder: Path, count: int, height: int, saliency: bool = False) -> Dataset:
        generator = torch.Generator().manual_seed(0)
        samples = []
        for i in range(count):
            tags = (1, 2) if i == count - 1 else (1 + i % 2,)
            picture, salient = torch.rand(height, 64, 3, generator=generator) * 0.5, torch.zeros(height, 64)
            for tag in tags:
                picture[10:40, 20 * tag : 20 * tag + 20, tag - 1] += 0.5
                salient[10:40, 20 * tag : 20 * tag + 20] = 1
            image, map_ = folder / f"{i}.png", folder / f"{i}-saliency.png"
            Image.fromarray((picture * 255).byte().numpy()).save(image)
            if saliency:
                Image.fromarray((salient[::2, ::2] * 255).byte().numpy()).save(map_)
            samples.append(Sample(str(i), image, tags, saliency=map_ if saliency else None))
        return Dataset(folder, "folder", ("red", "green"), tuple(samples))

    return draw


@pytest.fixture(scope="session")
def tiny() -> "Settings":
    """Return settings with which a training on a few small images takes a second."""
    from tagseg.settings.settings import Settings

    train = {"backbone": "test_resnet", "weights": "random", "freeze_stride": 0, "neck": 16, "epochs": 2, "batch": 4}
    return Settings.from_dict(
        {
            "device": "cpu",
            "workers": 0,
            "data": {"min_images": 2},
            "train": {**train, "crop": 33},
            "rca": {"slots": 8, "prototypes": 2, "confidence": 0.0},
            "localise": {"scales": [1.0], "max_side": 64},
            "segment": {"decoder_channels": 8},
        }
    )


SLOWEST_FILES = ("test_faults.py", "test_launch.py", "test_processes.py", "test_ray_cluster.py", "test_readme.py")
"""Those that start processes and run whole commands, a minute and more each."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked gpu where there is no CUDA device, and put those that fork training processes first.

    PyTorch refuses gradients in a fork of a process that has started threads for them, as some other tests make it do.
    """
    # The slowest files are next: where several processes run the tests, none is left to do them alone at the end.
    items.sort(
        key=lambda item: ("together" not in getattr(item, "fixturenames", ()), item.path.name not in SLOWEST_FILES)
    )
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def together(tmp_path_factory: pytest.TempPathFactory) -> "Callable[..., list[Any]]":
    """Return a function that calls `work(*arguments)` in `count` processes launched together on this machine, and
    returns what each of them returned (plain values), "Name: message" of what it raised, None where it was killed."""
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("no fork here: every process would take seconds to start")
    import accelerate  # noqa: F401  once, instead of once per process

    def call(count: int, work: "Callable[..., Any]", *arguments: Any, seconds: float = 300) -> list[Any]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        files = [tmp_path_factory.mktemp("rank") / "outcome.json" for _ in range(count)]
        fork = multiprocessing.get_context("fork")
        children = [
            fork.Process(target=_launched, args=(number, count, port, file, work, arguments))
            for number, file in enumerate(files)
        ]
        for child in children:
            child.start()
        deadline = time.monotonic() + seconds
        for child in children:
            child.join(max(deadline - time.monotonic(), 0))
        late = [number for number, child in enumerate(children) if child.is_alive()]
        for child in children:
            child.kill()
        assert not late, f"processes {late} of {count} still ran after {seconds} s"
        return [json.loads(file.read_text()) if file.exists() else None for file in files]

    return call


def _launched(number: int, count: int, port: int, file: Path, work: "Callable[..., Any]", arguments: Any) -> None:
    names = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in names.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    try:
        outcome = work(*arguments)
    except Exception as error:
        outcome = f"{type(error).__name__}: {error}"
    file.write_text(json.dumps(outcome))


class Killed(BaseException):
    """Stands for the end of the process: nothing after it changes a file."""


@pytest.fixture
def killed_before(monkeypatch: pytest.MonkeyPatch) -> "Callable[[int], contextlib.AbstractContextManager[list[int]]]":
    """Return a context that ends its block before the n-th operation on files; a list's only item counts them."""

    @contextlib.contextmanager
    def killed_before(number: int) -> "Iterator[list[int]]":
        count = [0]

        def dying(function: "Callable[..., object]") -> "Callable[..., object]":
            def called(*given: object, **named: object) -> object:
                count[0] += 1
                if count[0] > number:
                    raise Killed
                return function(*given, **named)

            return called

        with monkeypatch.context() as patched, contextlib.suppress(Killed):
            for name in ("replace", "rename", "unlink", "mkdir", "rmdir", "fsync"):
                patched.setattr(os, name, dying(getattr(os, name)))
            yield count

    return killed_before


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> "Callable[..., tuple[int, str, str]]":
    """Return a function that calls the command line and returns exit status, standard output and standard error."""
    from tagseg.cli.main import main

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        capsys.readouterr()
        status = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as leaving:
            status = int(leaving.code or 0)
        return status, *capsys.readouterr()

    return call


def _local_network(reach: int) -> "Segmenter":
    """Return a network that sees `reach` pixels far; its class is made here, when tagseg's signatures are checked."""
    from torch import Tensor, nn

    from tagseg.networks.segmenters import Segmenter

    class Local(Segmenter):
        """Scores of three ids from the mean colour of a pixel's neighbourhood of `reach` pixels to each side; what lies
        outside of the image is black. `sizes` are those of the images it was given."""

        def __init__(self, reach: int = 0) -> None:
            nn.Module.__init__(self)
            side = 2 * reach + 1
            self.mix = nn.Conv2d(3, 3, side, padding=reach, bias=False)
            self.mix.weight.data = 8 * torch.eye(3)[:, :, None, None].expand(3, 3, side, side) / side**2
            self.net, self.multiple, self.frozen_norms = nn.Identity(), 16, False
            self.sizes: list[tuple[int, ...]] = []

        def forward(self, images: Tensor) -> Tensor:
            self.sizes.append(tuple(images.shape))
            scores: Tensor = self.mix(images)
            return scores

        def fitting_size(self, height: float, width: float) -> tuple[int, int]:
            """Take sides of any multiple of 4."""
            h, w = (max(int(side / 4 + 0.5), 1) * 4 for side in (height, width))
            return h, w

    return Local(reach).eval()


@pytest.fixture
def pixelwise() -> "Segmenter":
    """Return a network for which every pixel stands by itself."""
    return _local_network(0)


@pytest.fixture
def nearsighted() -> "Segmenter":
    """Return a network that sees two pixels far, so that it is wrong beside an edge."""
    return _local_network(2)


@pytest.fixture
def masked_run(tmp_path: Path) -> "Run":
    """Return a run with masks and predictions.

    Its images are in folders; two differ only in their suffix, one is rotated. Every mask of a training image has one
    unsure pixel.
    """
    from PIL import Image

    from tagseg.masks.mask_files import mask_file, write_mask
    from tagseg.run.folder import Run
    from tagseg.settings.settings import Settings

    data = tmp_path / "data"
    names = {"cat": ["1.png", "2.jpg", "2.png"], "dog": ["1.png", "ä b.png", "turned.jpg"]}
    rows = []
    for number, (tag, name) in enumerate((tag, name) for tag, found in names.items() for name in found):
        path = data / "images" / tag / name
        path.parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        exif[0x0112] = 6 if name == "turned.jpg" else 1
        Image.new("RGB", (8, 6), (number * 40, 0, 0)).save(path, exif=exif)
        rows.append({"image": f"{tag}/{name}", "tags": [tag], "split": "train"})
    Image.new("RGB", (5, 4)).save(data / "images" / "new.png")
    rows.append({"image": "new.png", "tags": ["cat"], "split": "val"})
    (data / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    run = Run(tmp_path / "run")
    run.root.mkdir()
    run.settings_file.write_text(Settings.from_dict({"data": {"min_images": 1}}).to_toml())
    stages = {name: {"seconds": 1.0, "peak_mb": 1, "files": {}} for name in ("train", "masks", "segment", "evaluate")}
    run.manifest_file.write_text(json.dumps({"tagseg": "0", "data": str(data), "stages": stages}))
    for number, name in enumerate(("cat/1", "cat/2.jpg", "cat/2.png", "dog/1", "dog/ä b", "dog/turned")):
        mask = np.zeros((8, 6) if name == "dog/turned" else (6, 8), np.uint8)
        mask[1:3, 1 : 2 + number % 3] = 1 if name.startswith("cat") else 2
        write_mask(mask_file(run.decided_masks, name), mask)
        mask[5, 5] = 255
        write_mask(mask_file(run.masks, name), mask)
    write_mask(mask_file(run.predictions, "new"), np.full((4, 5), 2, np.uint8))
    return run
