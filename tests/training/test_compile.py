"""The setting compile: torch.compile translates the networks that learn."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tagseg.data.prepare import prepare
from tagseg.rca.train import load_network, train
from tagseg.run.folder import Run
from tagseg.run.open import open_run
from tagseg.segment.labels import true_labels
from tagseg.segment.read_network import read_predictor
from tagseg.segment.train import train_segmenter
from tagseg.settings.settings import Settings
from tagseg.training.checkpoint import load_tensors
from tagseg.training.device import compile_network


def short(settings: Settings) -> Settings:
    learning = dataclasses.replace(settings.train, epochs=2, freeze_batch_norm=True, freeze_stride=0)
    segment = dataclasses.replace(settings.segment, epochs=1, batch=4, crop=32, max_side=64, network="deeplabv2")
    return dataclasses.replace(settings, train=learning, segment=segment)


@pytest.mark.slow
def test_compiled_networks_learn_as_others(
    discs: Path, tiny: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Everything but the C++ compiler, which takes minutes for one step: that PyTorch can trace forward and backward.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    histories = []
    for compiled in (False, True):
        settings = dataclasses.replace(short(tiny), compile=compiled)
        run = open_run(tmp_path / str(compiled), discs, settings)
        prepared = prepare(run)
        trained = train(prepared.dataset, settings, run.network)
        labelled = true_labels(prepared, run.labels)
        segmented = train_segmenter(labelled, run.labels, settings, run.segmenter)
        histories.append([row["loss"] for row in (*trained.history, *segmented.history)])
    plain, compiled_ones = histories
    assert compiled_ones == pytest.approx(plain, rel=1e-3)
    one, two = (Run(tmp_path / name) for name in ("False", "True"))
    for folder in ("network", "segmenter"):
        names = [set(load_tensors(run.root / folder / "network.safetensors")[0]) for run in (one, two)]
        assert names[0] == names[1]
    load_network(two.network, torch.device("cpu"))
    read_predictor(two.segmenter, "cpu")


def test_without_a_compiler_the_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(function: Callable[..., Any]) -> Callable[..., Any]:
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC environment variable.")

    monkeypatch.setattr(torch, "compile", none)
    message = r"setting compile: torch.compile does not work here \(Failed to find C compiler\.\); leave it out"
    with pytest.raises(ValueError, match=message):
        compile_network(nn.Linear(2, 1), True)
    compile_network(nn.Linear(2, 1), False)  # nothing is tried
