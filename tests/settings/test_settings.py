import ast
import dataclasses
import inspect
import itertools
import math
import re
import typing
import zipfile
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tagseg.cli.main import app
from tagseg.settings import settings as module
from tagseg.settings.settings import Settings, map_kind
from tagseg.settings.toml import read_toml

HINTS = typing.get_type_hints(Settings)
SECTIONS = {name: kind for name, kind in HINTS.items() if dataclasses.is_dataclass(kind)}

WRONG: list[tuple[str, Any]] = [
    *[("seed", -1), ("workers", -1)],
    *[("data.min-images", 0), ("data.max-broken", -0.1), ("data.max-broken", 1.0), ("data.max-megapixels", 0.0)],
    *[("train.epochs", -1), ("train.batch", 0), ("train.crop", 31), ("train.neck", -1), ("train.head-convs", -1)],
    *[("train.scale", (0.0, 1.0)), ("train.scale", (0.9, 0.5)), ("train.scale", (0.5, 1.1)), ("train.weights", "")],
    *[("train.lr", 0.0), ("train.lr", math.nan), ("train.lr", math.inf), ("train.head-lr", 0.0)],
    *[("train.weight-decay", -1.0), ("train.jitter", -0.1), ("train.freeze-stride", -1), ("train.coarse-weight", -1.0)],
    *[("train.saliency-weight", -0.1), ("train.bias-lr", 0.0)],
    *[("rca.temperature", 0.0), ("rca.attention-temperature", -1.0), ("rca.mix-alpha", 0.0)],
    *[("rca.negatives", -1), ("rca.attended", -1)],
    *[("rca.region-threshold", 1.0), ("rca.background-threshold", -0.1), ("rca.confidence", 1.0)],
    *[("rca.momentum", 1.0), ("rca.slots", 0), ("rca.prototypes", 0), ("rca.prototypes", 501)],
    *[("rca.contrast-weight", -0.1), ("rca.warmup", -1)],
    *[("localise.scales", ()), ("localise.scales", (1.0, 0.0)), ("localise.scales", (1.0, math.nan))],
    *[("localise.max-side", 63), ("masks.threshold", 0.0), ("masks.threshold", 1.0), ("masks.power", 0.0)],
    *[("masks.unsure", -0.01), ("masks.unsure", 0.5)],
    *[("segment.epochs", -1), ("segment.batch", 1), ("segment.crop", 16), ("segment.crop", 31)],
    *[("segment.max-side", 63), ("segment.scale", (0.0, 1.0)), ("segment.scale", (2.0, 1.0)), ("segment.lr", -1.0)],
    *[("segment.head-lr", 0.0), ("segment.weight-decay", -1.0), ("segment.jitter", -0.1)],
    *[("segment.freeze-stride", -1), ("segment.predict-scales", ()), ("segment.predict-scales", (-1.0,))],
    ("report.examples", -1),
    *[("features.layers", ()), ("features.scales", (0.0,)), ("features.max-side", 63), ("features.channels", -1)],
]
"""Every bound, with a value just outside it."""


def nested(name: str, value: Any) -> dict[str, Any]:
    section, _, field = name.rpartition(".")
    return {section: {field: value}} if section else {field: value}


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_value_out_of_range_names_file_setting_and_value(name: str, value: Any) -> None:
    with pytest.raises(
        ValueError, match=rf"^my\.toml: setting {re.escape(name)} must be .+, got {re.escape(repr(value))}$"
    ):
        Settings.from_dict(nested(name, value), "my.toml")


def test_values_are_checked_without_a_file_too() -> None:
    with pytest.raises(ValueError, match=r"^setting train\.epochs must be 0 or more, got -1$"):
        module.TrainSettings(epochs=-1)


def test_the_bounds_themselves_are_allowed() -> None:
    built = Settings.from_dict(
        {
            "data": {"max_broken": 0, "min_images": 1},
            "train": {"crop": 32, "scale": [1, 1], "neck": 0, "jitter": 0, "freeze_stride": 0, "steps": []},
            "rca": {"prototypes": 500, "warmup": 0, "region_threshold": 0},
            "masks": {"unsure": 0},
            "segment": {"batch": 2, "crop": 32},
            "report": {"examples": 0},
        }
    )
    assert built.train.scale == (1.0, 1.0) and built.train.steps == () and built.rca.prototypes == 500


SCALES = r"setting localise\.scales must be a list of 1 or more numbers 0.05 or more and at most 20, "


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 3}, r"unknown setting epochs; known here: cache, compile, crf, data, device, .*train"),
        ({"train": {"epoch": 3}}, r"unknown setting train\.epoch; known here: backbone, .*epochs"),
        ({"train": 3}, r"setting train must be a table of settings, got 3"),
        ({"seed": "1"}, r"setting seed must be a whole number, got '1'"),
        ({"seed": True}, r"setting seed must be a whole number, got True"),
        ({"seed": 1.0}, r"setting seed must be a whole number, got 1\.0"),
        ({"train": {"lr": "fast"}}, r"setting train\.lr must be a number, got 'fast'"),
        ({"train": {"lr": True}}, r"setting train\.lr must be a number, got True"),
        ({"rca": {"mix": 1}}, r"setting rca\.mix must be true or false, got 1"),
        ({"train": {"stride": 7}}, r"setting train\.stride must be one of 8, 14, 16, 32, got 7"),
        ({"precision": "fp16"}, r"setting precision must be one of fp32, bf16, got 'fp16'"),
        (
            {"localise": {"scales": 1.0}},
            SCALES + r"got 1\.0",
        ),
        (
            {"localise": {"scales": "1.0"}},
            SCALES + r"got '1\.0'",
        ),
        (
            {"localise": {"scales": [1.0, "x"]}},
            SCALES + r"got \(1\.0, 'x'\)",
        ),
        (
            {"train": {"scale": [0.5]}},
            r"setting train\.scale must be a list of 2 numbers above 0 and at most 1, got \(",
        ),
        ({"train": {"steps": [1.5]}}, r"setting train\.steps must be a list of whole numbers, got \(1\.5,\)"),
    ],
)
def test_unknown_names_and_wrong_types(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^my.toml: {message}"):
        Settings.from_dict(values, "my.toml")


def test_names_may_be_written_like_flags() -> None:
    assert Settings.from_dict({"train": {"head-lr": 2}}).train.head_lr == 2.0


def value_of(hint: Any) -> st.SearchStrategy[Any]:
    choices = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return st.sampled_from(choices)
    if typing.get_origin(hint) is tuple:
        size = None if choices[-1] is Ellipsis else len(choices)
        return st.lists(value_of(choices[0]), min_size=size or 1, max_size=size or 4).map(sorted).map(tuple)
    if hint is float:
        return st.floats(0.05, 0.499)
    if hint is int:
        return st.integers(2, 32).map(lambda number: number * 32)
    return st.booleans() if hint is bool else st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


def section_of(kind: type) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional={name: value_of(h) for name, h in typing.get_type_hints(kind).items()})


@given(
    st.fixed_dictionaries(
        {"seed": st.integers(0, 2**32 - 1), "device": st.text(st.characters(exclude_categories=["Cs"]))},
        optional={name: section_of(kind) for name, kind in SECTIONS.items()},
    )
)
def test_settings_survive_a_toml_file(tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]) -> None:
    rca = values.get("rca", {})
    if "prototypes" in rca:  # the bank must hold as many regions
        rca["slots"] = rca["prototypes"]
    elif "slots" in rca:
        rca["prototypes"] = rca["slots"]
    if values.get("segment", {}).get("labels"):  # self-training needs maps of the run itself
        values["segment"]["rounds"] = 1
    if values.get("segment", {}).get("start") == "classifier":  # says where encoder and weights come from
        values["segment"] = {**values["segment"], "encoder": "", "weights": "", "labels": ""}
        if values.get("train", {}).get("method") == "frozen" or values.get("localise", {}).get("maps_from"):
            values["segment"]["start"] = "weights"
    if values.get("localise", {}).get("kind") == "posterior":  # needs aggregation and background in the bank
        values["rca"] = {**rca, "aggregation": True, "background": True}
    built = Settings.from_dict(values)
    file = tmp_path_factory.getbasetemp() / "settings.toml"
    file.write_text(built.to_toml(), encoding="utf-8")
    assert Settings.from_toml(file) == built
    assert read_toml(file) == built.to_dict()


@pytest.mark.parametrize("title", ['"quoted" \\ path', "line\nbreak\ttab", "\x00\x1f\x7f", "Füchse 🦊", ""])
def test_odd_texts_survive_a_toml_file(title: str, tmp_path: Path) -> None:
    built = Settings(report=module.ReportSettings(title=title))
    (tmp_path / "s.toml").write_text(built.to_toml(), encoding="utf-8")
    assert Settings.from_toml(tmp_path / "s.toml") == built


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"cannot read the settings file \(No such file"),
        (b"[train\n", r"not a TOML file \("),
        (b"\xff\xfe", r"not a TOML file \("),
        (b"[train]\nepochs = -1\n", r"setting train\.epochs must be 0 or more, got -1"),
    ],
)
def test_bad_settings_files_are_named(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "my.toml").write_bytes(content)
    with pytest.raises(ValueError, match=f"my.toml: {message}"):
        Settings.from_toml(tmp_path / "my.toml")


def test_the_settings_of_a_run_of_0_1_are_written_line_by_line_as_then(tmp_path: Path) -> None:
    """What is new is at its defaults, with which nothing changes."""
    with zipfile.ZipFile(Path(__file__).parents[1] / "fixtures/run_of_0_1.zip") as fixture:
        content = fixture.read("run/settings.toml")
    (tmp_path / "settings.toml").write_bytes(content)
    again = Settings.from_toml(tmp_path / "settings.toml").to_toml()
    lines, default = again.splitlines(), Settings().to_toml().splitlines()
    left = iter(lines)
    assert all(line in left for line in content.decode().splitlines())  # each one, in the same order
    new = set(lines) - set(content.decode().splitlines())
    assert new and new <= set(default)


def documented(kind: type) -> set[str]:
    """Return the fields of a dataclass that have a docstring under them."""
    (body,) = (node.body for node in ast.parse(inspect.getsource(kind)).body if isinstance(node, ast.ClassDef))
    return {
        field.target.id
        for field, text in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }


@pytest.mark.parametrize("kind", [Settings, *SECTIONS.values()], ids=lambda kind: kind.__name__)
def test_every_setting_has_a_docstring(kind: type) -> None:
    fields = {field.name for field in dataclasses.fields(kind)} - set(SECTIONS)
    assert fields and documented(kind) >= fields


def test_the_help_of_fit_shows_every_setting_with_its_docstring(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        app(["fit", "--help"], console=Console(width=300))
    text = " ".join(capsys.readouterr().out.split())
    single = [name for name in HINTS if name not in SECTIONS]
    names = single + [
        f"{section}.{field}" for section, kind in SECTIONS.items() for field in typing.get_type_hints(kind)
    ]
    assert [name for name in names if not re.search(rf" --{re.escape(name.replace('_', '-'))}[ ,]", text)] == []
    assert "Larger images are rejected before they are decoded (decompression bombs)." in text
    assert "Seed of all random numbers." in text


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().seed = 1  # type: ignore[misc]


@pytest.mark.parametrize("switch", ["aggregation", "background"])
def test_posterior_maps_need_aggregation_and_background(switch: str) -> None:
    with pytest.raises(
        ValueError, match=r"setting localise\.kind must be refined, coarse or auto unless .*, got 'posterior'"
    ):
        Settings.from_dict({"localise": {"kind": "posterior"}, "rca": {switch: False}})


def test_auto_takes_the_rest_of_posterior_maps_and_otsu_for_all_others() -> None:
    full = Settings()
    assert map_kind(full.localise, full.rca) == "posterior"
    assert full.mask_rule().background == "rest"
    plain = Settings.from_dict({"rca": {"aggregation": False}})
    assert map_kind(plain.localise, plain.rca) == "refined"
    assert plain.mask_rule().background == "otsu"
    chosen = Settings.from_dict({"localise": {"kind": "coarse"}, "masks": {"background": "power"}})
    assert map_kind(chosen.localise, chosen.rca) == "coarse"
    assert chosen.mask_rule() == chosen.masks


@pytest.mark.parametrize(("epochs", "warmup", "fits"), [(1, 0, False), (2, 0, True), (3, 3, False), (4, 3, True)])
def test_accumulating_needs_an_epoch_after_the_warm_up(epochs: int, warmup: int, fits: bool) -> None:
    values = {"maps": "oaa", "train": {"epochs": epochs}, "rca": {"warmup": warmup}}
    if fits:
        assert Settings.from_dict(values).warm_epochs() == max(warmup, 1)
        return
    with pytest.raises(
        ValueError, match=r"setting train\.epochs must be above [13] with maps = oaa, which accumulates .*, got [13]$"
    ):
        Settings.from_dict(values)


def test_accumulated_maps_and_maps_taught_by_saliency_are_cut_by_otsu() -> None:
    oaa, eps = (Settings.from_dict({"maps": maps}) for maps in ("oaa", "eps"))
    assert oaa.mask_rule().background == eps.mask_rule().background == "otsu"
    assert map_kind(eps.localise, eps.rca, "eps") == "refined"
    asked = Settings.from_dict({"maps": "eps", "localise": {"kind": "posterior"}})
    assert map_kind(asked.localise, asked.rca, "eps") == "posterior"
    assert asked.mask_rule().background == "rest"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"train": {"method": "frozen"}},
            r"train\.method must be finetuned with segment\.start = classifier, got",
        ),
        ({"localise": {"maps_from": "cams"}}, r"localise\.maps-from must be empty with segment\.start = classifier"),
    ],
)
def test_the_segmenter_can_start_only_at_a_classifier_that_learns(values: dict[str, Any], message: str) -> None:
    trained = {"train": {"method": "finetuned"}, "segment": {"start": "classifier"}}
    assert Settings.from_dict(trained).segment.start == "classifier"
    with pytest.raises(ValueError, match=message):
        Settings.from_dict(trained | values)
