from pathlib import Path

import pytest

from tagseg.cli.main import main
from tagseg.run.folder import Run
from tagseg.settings.settings import Settings
from tagseg.settings.toml import to_toml
from tagseg.studies.bench.protocols import PROTOCOLS, Protocol

TAKEN = {
    "train": ("backbone", "weights", "neck", "head_convs", "epochs", "batch", "crop"),
    "rca": ("confidence", "slots", "prototypes", "warmup"),
    "localise": ("scales", "max_side"),
    "segment": ("epochs", "batch", "crop", "max_side", "predict_scales", "stride"),
    "report": ("examples",),
    "data": ("min_images",),
}
"""The quick settings that the command is given; all others are the paper's."""


def small_toml(quick: Settings) -> str:
    own = quick.to_dict()
    tables = {section: {name: own[section][name] for name in names} for section, names in TAKEN.items()}
    tables["train"]["steps"] = []
    tables["segment"] |= {"network": "deeplabv3plus", "encoder": "test_resnet", "weights": "random"}
    return to_toml({"device": "cpu", "workers": 0, **tables})


def call(*arguments: str | Path) -> int:
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as leaving:
        return int(leaving.code or 0)
    return 0


def test_the_command(
    voc: Path,
    small_voc: Protocol,
    quick: Settings,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert call("bench", "voc2012", "--data", voc, "--check") == 2
    said = capsys.readouterr()
    assert "| val | 3 | 1,449 |" in said.out and "list val: 3 images, expected 1,449" in said.err
    assert call("bench", "voc2012", "--data", tmp_path / "gone") == 2
    assert "VOCtrainval_11-May-2012.tar" in capsys.readouterr().err
    assert call("bench", "voc2012", "--data", voc, "--backbone", "resnet18") == 2
    assert "resnet18" in capsys.readouterr().err
    monkeypatch.setitem(PROTOCOLS, "voc2012", small_voc)
    monkeypatch.chdir(tmp_path)
    assert call("bench", "voc2012", "--data", voc, "--check") == 0
    assert "wrong" not in capsys.readouterr().out and not (tmp_path / "runs").exists()
    (tmp_path / "small.toml").write_text(small_toml(quick))
    given = ("bench", "voc2012", "--data", voc, "--settings", "small.toml", "--train.lr", "0.01", "--no-crf")
    assert call(*given) == 0
    assert "| segmenter, validation images |" in capsys.readouterr().out
    settings = Run(tmp_path / "runs/voc2012_oaa_vgg16/seed_0").settings()
    assert settings.masks.saliency  # the data has the maps
    assert (settings.maps, settings.rca.update, settings.data.layout) == ("oaa", "blend", "voc")  # the paper's
    assert (settings.train.lr, settings.train.crop) == (0.01, 33)  # the flag's and the file's
    assert call(*given) == 0  # continues, and everything is done


def test_the_commands_of_the_page_work(
    voc: Path,
    coco: Path,
    small_voc: Protocol,
    small_coco: Protocol,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The commands of docs/reproduce.md, on the stand-ins, with --check."""
    monkeypatch.setitem(PROTOCOLS, "voc2012", small_voc)
    monkeypatch.setitem(PROTOCOLS, "coco2014", small_coco)
    page = (Path(__file__).resolve().parents[3] / "docs/reproduce.md").read_text(encoding="utf-8")
    lines = [line.partition("#")[0].split() for line in page.splitlines() if line.startswith("tagseg bench ")]
    assert {line[2] for line in lines} == {"voc2012", "coco2014"} and len(lines) == 4
    for words in lines:
        words[words.index("--data") + 1] = str({"voc2012": voc, "coco2014": coco}[words[2]])
        words = [*(word for word in words[1:] if word != "--check"), "--check", "--data.min-images", "1"]
        assert call(*words) == 0, capsys.readouterr().err
