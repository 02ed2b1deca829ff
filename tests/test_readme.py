"""What README.md and docs/ say about the project is so, and every command in them is run."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tomllib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from cyclopts import CycloptsError
from PIL import Image

from tagseg.cli.app import app
from tagseg.cli.main import main

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "src/tagseg/"
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

LANGUAGES = {"sh", "python", "json", "toml", "text", "{toctree}", "{eval-rst}"}
"""What code blocks hold. Lines of sh are run, python is executed."""

NOT_RUN = {
    r"make (demo|docs|test)$": "builds an environment first; the targets are compared with the Makefile",
    r"\. \.venv/bin/activate$": "changes the shell",
    r"pip install ": "changes the environment; the extras are compared with pyproject.toml",
    r"tagseg review ": "serves until Ctrl-C; tests/review does",
    r"tagseg .*runs/taught": "serves until Ctrl-C, or needs features that TINY replaces; tests/teaching runs these",
    r"tagseg labelstudio ": "serves until Ctrl-C; tests/live does",
    r"tagseg bench |tagseg .* (VOC2012|COCO2014)/": "data sets that are not here",
    r"tagseg .* --train.weights weights/": "weights that are not here",
    r"python (-m benchmarks\.|examples/)": "minutes to hours, or data that is not here; they must exist",
    r"tagseg .* vit_small_patch14_dinov2": "too large for a test; tests/segment has vision transformers",
    r"tagseg .* --preset (dinov2|dinov3|clip)": "weights that are not here; tests/test_presets.py takes random ones",
    r"tagseg .* --processes ": "processes of their own; tests/training starts some",
    r"accelerate launch ": "processes of their own; tests/test_launch.py starts some",
    r"hf auth ": "asks for a token of the Hugging Face Hub",
    r"tagseg push (?!.*--dry-run)": "uploads; tests/export/test_push.py has a server of its own",
    r"tagseg .* hf://": "downloads; tests/export/test_push.py has a server of its own",
    r"tagseg .* --engine": "exports a graph, which takes half a minute; tests/segment/test_engines.py does it",
    r"tagseg .* --precision int8": "needs sixteen photographs and a graph; tests/segment/test_engines.py does it",
    r"tagseg .* --on ray": "Ray may not be there; tests/segment/test_mass_on_ray.py needs it, too",
}
"""Commands that are not run, and why; those of tagseg must parse all the same."""

TINY = """\
device = "cpu"
workers = 0
data = { min_images = 2 }
train = { backbone = "test_resnet", weights = "random", freeze_stride = 0, neck = 16, epochs = 1, batch = 4, crop = 33 }
rca = { confidence = 0.0, slots = 8, prototypes = 2 }
localise = { scales = [1.0], max_side = 64 }
segment = { decoder_channels = 8, epochs = 1, batch = 4, crop = 32, max_side = 64, predict_scales = [1.0] }
report = { examples = 2 }
"""


def blocks(text: str, language: str = "") -> list[str]:
    """Return the contents of the fenced code blocks, or of those in one language."""
    return re.findall(rf"^[ ]*```{language}[^\n]*\n(.*?)^[ ]*```[ ]*$", text, re.MULTILINE | re.DOTALL)


def lines_of(block: str) -> list[list[str]]:
    """Return the commands of a shell block as words; comments and continued lines are read as a shell does."""
    split = (shlex.split(line, comments=True) for line in block.replace("\\\n", " ").splitlines())
    return [words for words in split if words]


def reason(words: list[str]) -> str | None:
    """Return the pattern in NOT_RUN by which a command is not run."""
    return next((pattern for pattern in NOT_RUN if re.match(pattern, " ".join(words))), None)


def parse(words: list[str]) -> None:
    """Raise CycloptsError unless tagseg knows the command and all its flags."""
    app.parse_args(words[1:], exit_on_error=False, print_error=False)


def call(words: list[str]) -> None:
    """Run a command of tagseg in the current folder, a training with the settings of TINY."""
    options = dict(pairwise(words))
    out = {"fit": options.get("--out"), "masks": words[2], "segment": words[2]}.get(words[1])
    if out is not None and not (Path(out) / "manifest.json").exists():
        # As a run that was killed in its first moments: the command line goes on with these settings.
        Path(out).mkdir(parents=True, exist_ok=True)
        (Path(out) / "settings.toml").write_text(TINY)
    try:
        main(words[1:] + ["--settings", "my.toml"] * (words[1] == "ablate"))
    except SystemExit as leaving:
        assert not leaving.code, words


def commands(text: str, program: str) -> set[str]:
    """Return the words that follow `program` at the start of a line of a code block, or of an inline piece of code."""
    pieces = [line for block in blocks(text) for line in block.splitlines()]
    pieces += re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)
    pattern = re.compile(rf"\s*(?:\$ )?(?:\S+=\S* )*(?:\S*/)?{program} +([a-z][a-z-]*)\b")
    return {match[1] for piece in pieces for part in re.split(r"&&|;", piece) if (match := pattern.match(part))}


def package_tree(text: str) -> dict[str, str]:
    """Return path below the repository -> description, from the code block that draws the package.

    Depth is read from where a name starts, after spaces or box-drawing characters; a name that ends in / is a folder.
    """
    (block,) = (block for block in blocks(text) if re.search(rf"^{re.escape(PACKAGE)}", block, re.MULTILINE))
    lines = block[block.index(PACKAGE) :].splitlines()
    entries: dict[str, str] = {}
    parents: list[tuple[int, str]] = [(-1, PACKAGE)]
    for line in lines[1:]:
        match = re.match(r"[\s│├└─|`+-]*", line)
        assert match is not None
        depth = match.end()
        if depth == 0:
            break
        if depth == len(line):
            continue
        name, _, description = line[depth:].partition(" ")
        while depth <= parents[-1][0]:
            parents.pop()
        path = parents[-1][1] + name
        if name.endswith("/"):
            parents.append((depth, path))
        entries[path] = description.strip(" #\t")
    return entries


def local_links(text: str) -> set[str]:
    """Return the targets of links and pictures that lie in the repository, without their anchors."""
    prose = re.sub(r"^[ ]*```.*?^[ ]*```[ ]*$", "", text, flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(\s*<?([^)\s>]+)", prose) + re.findall(r"\b(?:src|href|srcset)=[\"']([^\"']+)", prose)
    targets += re.findall(r"^\[[^\]]+\]:\s*(\S+)", prose, re.MULTILINE)
    return {target.partition("#")[0] for target in targets if not re.match(r"[a-z]+:|#|//", target)}


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory, discs: Path) -> Path:
    """Return a folder of what the pages' commands need, `tagseg fit photos/ --out runs/mine` done for all of them."""
    home = tmp_path_factory.mktemp("docs") / "home"
    photos = Path(shutil.copytree(discs, home / "photos"))
    for folder in ("new", "scans", "drawn", "shards", "new_shards", "cams", "probabilities", "saliency"):
        (home / folder).mkdir()
    for i, split in enumerate(["train"] * 9 + ["val"] * 2):
        image = Image.open(photos / "images" / f"{i % 9}.png")
        blue, red = ((np.asarray(image) == colour).all(2) for colour in ((0, 0, 255), (255, 0, 0)))
        image.save(photos / "images" / f"{i}.png")
        for folder in ("cams", "probabilities"):
            np.savez(home / folder / f"{i}.npz", blue=blue * 0.9, red=red * 0.9)
        Image.fromarray((blue | red).astype(np.uint8) * 255).save(home / "saliency" / f"{i}.png")
        masks = home / "drawn" if split == "train" else photos / "masks"
        Image.fromarray((blue + 2 * red).astype(np.uint8)).save(masks / f"{i}.png")
    tags = ("red", "blue", "red blue")
    rows = [f"{i}.png,{tags[i % 9 % 3]},{'train' if i < 9 else 'val'}" for i in range(11)]
    (photos / "tags.csv").write_text("\n".join(["image,tags,split", *rows]) + "\n")
    for i, name in enumerate(("new/1.jpg", "new/2.jpg", "scans/1.jpg")):
        Image.open(photos / "images" / f"{i}.png").save(home / name)
    for shard, chosen in (("shards/000", range(9)), ("new_shards/000", (0,)), ("new_shards/001", (1,))):
        with tarfile.open(home / f"{shard}.tar", "w") as tar:
            for i in chosen:
                (home / "tags.txt").write_text(tags[i % 3])
                tar.add(photos / "images" / f"{i}.png", f"{i}.png")
                tar.add(home / "tags.txt", f"{i}.txt")
    (home / "my.toml").write_text(TINY)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        call(["tagseg", "fit", "photos/", "--out", "runs/mine"])
        call(["tagseg", "export", "runs/mine", "--to", "coco", "--out", "coco"])
    (home / "coco" / "annotations" / "instances_train.json").rename(home / "corrected.json")
    shutil.rmtree(home / "coco")
    shutil.copytree(home, home.with_name("pristine"))
    return home


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_is_run(page: Path, pristine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = page.read_text(encoding="utf-8")
    if page.name == "notebook.md":  # it shows examples/notebook.py, which tests/test_docs.py runs
        assert not blocks(text, "sh")
        return
    shutil.rmtree(pristine)
    shutil.copytree(pristine.with_name("pristine"), pristine)
    monkeypatch.chdir(pristine)
    names: dict[str, object] = {}
    for language, block in re.findall(r"^```(sh|python)\n(.*?)^```[ ]*$", text, re.MULTILINE | re.DOTALL):
        if language == "python":
            exec(compile(block, str(page), "exec"), names)
            continue
        for words in lines_of(block):
            if words[0] == "tagseg":
                parse(words)
            if reason(words) is None:
                assert words[0] == "tagseg", f"{page.name}: {words} is neither run nor in NOT_RUN"
                call(words)


def test_code_blocks_say_what_they_hold() -> None:
    every = {page.name: page.read_text(encoding="utf-8") for page in PAGES}
    for name, text in every.items():
        languages = re.findall(r"^```([^\n]*)$", text, re.MULTILINE)[::2]
        assert set(languages) <= LANGUAGES | ({""} if name == "README.md" else set()), name  # "": the package tree
        others = [
            line
            for language in ("text", "json", "toml")
            for block in blocks(text, language)
            for line in block.splitlines()
        ]
        listing = name == "public_api.md"  # of all commands with their flags; tests/test_public_api.py compares it
        found = commands("\n".join(f"`{line}`" for line in others), "tagseg")
        assert listing or not found, f"{name}: a command that is not sh"
    given = [words for text in every.values() for block in blocks(text, "sh") for words in lines_of(block)]
    assert len(given) > 50
    assert set(NOT_RUN) <= {reason(words) for words in given}, "an exception that no page needs"


def test_flags_that_do_not_exist_are_found() -> None:
    parse(["tagseg", "fit", "VOC2012/", "--out", "runs/a", "--preset", "paper-voc"])
    for wrong in (["--no-such-flag", "1"], ["--segment.rounds", "none"]):
        with pytest.raises((CycloptsError, ValueError)):
            parse(["tagseg", "fit", "VOC2012/", "--out", "runs/a", *wrong])


def test_flags_in_the_text_exist() -> None:
    known = {"--help"}
    for name in app:
        if not name.startswith("-"):
            known |= {flag for argument in app[name].assemble_argument_collection() for flag in argument.names}
    assert {"--segment.rounds", "--crf.steps", "--localise.no-flip", "--polygons"} <= known
    for page in PAGES:
        prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        pieces = [piece for piece in re.findall(r"`([^`]+)`", prose) if not re.match("python |accelerate ", piece)]
        flags = {flag for piece in pieces for flag in re.findall(r"(?<!\S)--[a-z][\w.-]*", piece)}
        assert {flag for flag in flags if flag not in known} == set(), page.name


def test_extras_that_are_named_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = {extra for page in PAGES for extra in re.findall(r"(?:tagseg|\.)\[(\w+)\]'", page.read_text("utf-8"))}
    assert "onnx" in named
    assert named <= set(extras)


def _today(command: re.Match[str]) -> str:
    """Return the path of a benchmark that has got a folder since its result was recorded."""
    found = [path.relative_to(ROOT).as_posix() for path in (ROOT / "benchmarks").glob(f"*/{command[1]}.py")]
    assert len(found) == 1, command[0]
    return f"python {found[0]}"


def test_scripts_that_are_named_exist() -> None:
    text = {page.name: page.read_text("utf-8") for page in PAGES}
    # Pages of results quote the commands as they were given, those of 0.1 without the benchmark's folder.
    for name in ("benchmarks.md", "a_billion_images.md"):
        text[name] = re.sub(r"\bpython benchmarks/(\w+)\.py", _today, text[name])
    named = {script for page in text.values() for script in re.findall(r"\bpython ([\w/]+\.py)", page)}
    modules = {name for page in text.values() for name in re.findall(r"\bpython -m (benchmarks\.[\w.]+)", page)}
    named |= {f"{name.replace('.', '/')}.py" for name in modules}
    assert {"benchmarks/quality/voc_animals.py", "docs/pages.py", "examples/notebook.py"} <= named
    assert [script for script in sorted(named) if not (ROOT / script).is_file()] == []


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {target for page in PAGES for target in commands(page.read_text(encoding="utf-8"), "make")}
    assert {"demo", "docs", "test"} <= named
    assert named <= targets


def test_every_command_exists() -> None:
    environment = os.environ | {"COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run(
        [sys.executable, "-m", "tagseg", "--help"], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    known = set(re.findall(r"^\W*([a-z][a-z-]*)(?=\s)", done.stdout, re.MULTILINE))
    named = {name for page in PAGES for name in commands(page.read_text(encoding="utf-8"), "tagseg")}
    assert {"fit", "predict"} <= named
    assert named <= known


def test_the_package_tree_names_every_folder_with_one_line() -> None:
    tree = package_tree((ROOT / "README.md").read_text(encoding="utf-8"))
    folders = {f"{path.relative_to(ROOT).as_posix()}/" for path in (ROOT / PACKAGE).glob("*") if path.is_dir()}
    folders = {path for path in folders if "__pycache__" not in path}
    assert {path for path in tree if path.endswith("/")} == folders
    assert [path for path in tree if not (ROOT / path).exists()] == []
    assert [path for path, description in tree.items() if not description] == []
    assert len(tree) <= 30, "a newcomer needs few files"


def test_the_readme_is_short_and_begins_with_a_picture() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 133
    assert re.match(r"# tagseg\n\n!\[", text)
    assert "Not for you if" in "\n".join(text.splitlines()[:10]), "the first lines say for whom it is and for whom not"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_local_link_and_picture_exists(page: Path) -> None:
    targets = sorted(local_links(page.read_text(encoding="utf-8")))
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize(
    "drawing",
    [
        "src/tagseg/\n  cli.py     commands\n  data/      readers\n    voc.py   the devkit\n  run.py     the file",
        "src/tagseg/\n├── cli.py # commands\n├── data/ # readers\n│   └── voc.py  # the devkit\n└── run.py  # the file",
    ],
    ids=["spaces", "boxes"],
)
def test_package_trees_are_read_as_drawn(drawing: str) -> None:
    assert package_tree(f"Text\n\n```sh\nmake demo\n```\n\n```\n{drawing}\ntests/  mirror it\n```\n") == {
        "src/tagseg/cli.py": "commands",
        "src/tagseg/data/": "readers",
        "src/tagseg/data/voc.py": "the devkit",
        "src/tagseg/run.py": "the file",
    }


def test_commands_and_links_are_found() -> None:
    text = (
        "Run `make demo`, see [map](docs/map.md#top), [site](https://example.org) and ![p](a.png).\n\n"
        "```sh\n$ .venv/bin/tagseg fit DATA --out RUN && tagseg predict RUN NEW\nPYTHON=python3.12 make test\n"
        "tagseg --help\necho make nothing  # [x](none.md)\n```\n"
    )
    assert commands(text, "make") == {"demo", "test"}
    assert commands(text, "tagseg") == {"fit", "predict"}
    assert local_links(text) == {"docs/map.md", "a.png"}
