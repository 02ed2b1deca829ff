"""The site builds without a warning and without the network, and what is made from other files is up to date."""

import importlib
import json
import os
import re
import runpy
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import tagseg

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
SOURCES = sorted(path.stem for path in DOCS.glob("*.md"))
FOREIGN = re.compile(r"(?:[a-z]+:)?//", re.IGNORECASE)

TINY = """\
OUT = Path("notebook")
TRAIN, VAL = 12, 6
SETTINGS = tagseg.Settings.from_dict({
    "device": "cpu", "workers": 0, "data": {"min_images": 1},
    "train": {"backbone": "test_resnet", "weights": "random", "freeze_stride": 0, "neck": 16, "epochs": 1, "crop": 33},
    "rca": {"confidence": 0.0, "slots": 8, "prototypes": 2},
    "localise": {"scales": [1.0], "max_side": 64},
    "segment": {"decoder_channels": 8, "epochs": 1, "batch": 4, "crop": 32, "max_side": 64, "predict_scales": [1.0]},
    "report": {"examples": 2},
})
"""


class Page(HTMLParser):
    """What a page loads, what it links to, and its anchors."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.anchors |= {given["id"]} if "id" in given else set()
        if tag == "a":
            self.links += [given["href"]] if "href" in given else []
        elif tag == "link":
            # What only says where to find something loads nothing.
            self.loads += (
                [given["href"]] if given.get("rel") not in ("canonical", "index", "search", "next", "prev") else []
            )
        else:
            self.loads += [given[name] for name in ("src", "srcset", "data", "poster") if name in given]


@pytest.fixture(scope="module")
def pages() -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "pages.py"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the built site; every warning is an error."""
    out = tmp_path_factory.mktemp("docs") / "site"
    # A proxy that does not answer: whoever asked the network would fail.
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "sphinx",
        "--fail-on-warning",
        "--keep-going",
        "--quiet",
        "-d",
        out / "trees",
        DOCS,
        out,
    ]
    done = subprocess.run(command, env=os.environ | nowhere, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return out


def test_every_page_is_built(site: Path) -> None:
    assert [name for name in SOURCES if not (site / f"{name}.html").exists()] == []
    listed = (DOCS / "index.md").read_text(encoding="utf-8")
    assert [name for name in SOURCES if name != "index" and not re.search(rf"^{name}$", listed, re.MULTILINE)] == []


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    loaded = {name: Page(site / f"{name}.html").loads for name in SOURCES}
    assert all(any("furo" in address for address in addresses) for addresses in loaded.values())
    assert {name: found for name, found in loaded.items() if any(map(FOREIGN.match, found))} == {}
    styles = "\n".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert re.findall(r"@import[^;]*//[^;]*|url\(\s*[\"']?(?:https?:)?//[^)]*\)", styles) == []


def test_every_link_within_the_site_has_a_target(site: Path) -> None:
    built = {path.name: Page(path) for path in site.glob("*.html")}
    missing = []
    for name, page in built.items():
        for link in page.links:
            target, _, anchor = link.partition("#")
            if FOREIGN.match(link) or link.startswith("mailto:") or (name not in map("{}.html".format, SOURCES)):
                continue
            if target.endswith(".html") or not target:
                there = built.get(target or name)
                if there is None or (anchor and anchor not in there.anchors):
                    missing.append((name, link))
    assert missing == []


def test_the_api_has_what_tagseg_offers(site: Path) -> None:
    anchors = Page(site / "api.html").anchors
    assert [name for name in tagseg.__all__ if f"tagseg.{name}" not in anchors] == []
    text = (site / "api.html").read_text(encoding="utf-8")
    assert "Rounds of self-training" in text, "docstrings under the fields of settings are shown"


def test_pages_made_from_other_files_are_up_to_date(pages: dict[str, Any]) -> None:
    for name, page in pages["PAGES"].items():
        assert (DOCS / name).read_text(encoding="utf-8") == page(), f"docs/{name} is old: python docs/pages.py"


def test_every_result_is_on_the_page_with_how_it_was_measured(pages: dict[str, Any]) -> None:
    text = pages["benchmarks_page"]()
    results = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    assert len(results) > 10
    for path in results:
        about = json.loads(path.read_text(encoding="utf-8"))
        section = re.split(rf"^### {path.stem}$", text, flags=re.MULTILINE)[1].partition("\n### ")[0]
        assert f"`{about['command']}`" in section, path.name
        assert about["machine"] in section
        assert f"torch {about['versions']['torch']}" in section
        seeds = f"| seeds | {', '.join(map(str, about['seeds']))} |"
        assert (seeds in section) == bool(about["seeds"])


def test_a_new_result_appears_by_itself(pages: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about = {"command": "python benchmarks/new.py", "machine": "m", "versions": {"python": "3"}, "seeds": [4, 5]}
    (tmp_path / "new.json").write_text(json.dumps(about))
    foot = "`python benchmarks/new.py` on m; seed 4, 5; python 3.\n"
    (tmp_path / "new.md").write_text(f"# new\n\n| a |\n|---|\n| 1 |\n\n## Part\n\n![p](new.svg)\n\n{foot}")
    monkeypatch.setitem(pages["benchmarks_page"].__globals__, "RESULTS", tmp_path)
    text = pages["benchmarks_page"]()
    assert f"## {pages['REST']}\n\n### new\n\n| a |" in text
    assert "#### Part\n\n![p](../benchmarks/results/new.svg)\n\n| measured by | |" in text
    assert "| seeds | 4, 5 |" in text
    assert foot.strip() not in text


def test_the_python_blocks_of_all_pages_pass_strict_type_checks(tmp_path: Path) -> None:
    checks = runpy.run_path(str(ROOT / "benchmarks/structure/checks.py"))
    assert checks["type_errors_of_pages"](tmp_path) == []
    assert len(list(tmp_path.glob("page_*.py"))) > 5


def test_type_errors_in_python_blocks_are_found(tmp_path: Path) -> None:
    checks = runpy.run_path(str(ROOT / "benchmarks/structure/checks.py"))
    page = "Text\n\n```python\nimport tagseg\n\nnumber: int = tagseg.preset\n```\n\n```sh\nnot python\n```\n"
    (block,) = checks["python_blocks"](page)
    (tmp_path / "wrong.py").write_text(block)
    (error,) = checks["type_errors"](str(tmp_path / "wrong.py"))
    assert "wrong.py:3: error: Incompatible types in assignment" in error


def test_files_of_the_repository_that_pages_name_exist() -> None:
    path = re.compile(r"(?<![\w/.-])(?:src|tests|benchmarks|docs|examples)/[\w/-]+\.\w+")
    quoting = ("benchmarks.md", "a_billion_images.md")  # commands as they were given
    named = {
        (page.name, name)
        for page in (ROOT / "README.md", *DOCS.glob("*.md"))
        if page.name not in quoting
        for name in path.findall(page.read_text(encoding="utf-8"))
    }
    assert len(named) > 20
    assert [(page, name) for page, name in sorted(named) if not (ROOT / name).exists()] == []


def test_modules_that_the_architecture_names_exist() -> None:
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    layers = runpy.run_path(str(ROOT / "benchmarks/structure/checks.py"))["documented_layers"]()
    paths = {path for path in re.findall(r"`(\w+/\w+\.py)`", text) if path.partition("/")[0] in layers}
    functions = set(re.findall(r"`(tagseg(?:\.\w+)+)`", text))
    assert len(paths) > 20 and len(functions) > 5
    assert [path for path in sorted(paths) if not (ROOT / "src/tagseg" / path).exists()] == []
    for name in functions:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name


def test_every_module_that_defines_a_json_record_is_in_the_table() -> None:
    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    table = text.partition("\n## JSON files of a run\n")[2].partition("\n## ")[0]
    package = ROOT / "src/tagseg"
    defining = [
        path.relative_to(package).as_posix()
        for path in sorted(package.rglob("*.py"))
        if re.search(r"^class \w+\(Record\b", path.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert len(defining) > 5
    assert [name for name in defining if f"`{name}`" not in table] == []


def test_cells_are_read(pages: dict[str, Any]) -> None:
    text = '"""Head."""\n\n# %% [markdown]\n# # Title\n#\n# Text\n\n# %%\na = 1\n\n# %% parameters\nb = 2\n'
    assert pages["cells"](text) == [("[markdown]", "# # Title\n#\n# Text"), ("", "a = 1"), ("parameters", "b = 2")]


def test_the_notebook_runs(
    pages: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    notebook = pages["cells"](pages["NOTEBOOK"].read_text(encoding="utf-8"))
    assert [head for head, _ in notebook].count("parameters") == 1
    names: dict[str, Any] = {}
    for head, body in notebook:
        if head != "[markdown]":
            exec(compile(TINY if head == "parameters" else body, "notebook", "exec"), names)
    shown = set(re.findall(r"pictures/(notebook_\w+\.jpg)", pages["notebook_page"]()))
    assert {path.name for path in (tmp_path / "notebook" / "pictures").iterdir()} == shown
    assert {path.name for path in (DOCS / "pictures").glob("notebook_*")} == shown
    assert "mean IoU" in capsys.readouterr().out


def test_the_citation_names_this_version() -> None:
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {tagseg.__version__}\n" in text
    assert "\nlicense: Apache-2.0\n" in text
    assert "Regional Semantic Contrast and Aggregation" in text
