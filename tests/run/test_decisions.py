import contextlib
import dataclasses
import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tagseg
from tagseg.data.images import read_mask_file
from tagseg.data.prepare import Prepared
from tagseg.data.records import VOID, Dataset, Sample
from tagseg.errors import RunError
from tagseg.masks.make import make_masks, mask_sample
from tagseg.masks.map_files import map_file, write_maps
from tagseg.masks.mask_files import mask_file
from tagseg.masks.probabilities import label_probabilities, shift_background
from tagseg.masks.update import unlearned, update_masks
from tagseg.run.decisions import (
    OPEN,
    Decision,
    accepted_masks,
    check_database,
    decision_digests,
    decision_of,
    decisions,
    record_decision,
)
from tagseg.run.folder import Run
from tagseg.run.open import open_run
from tagseg.settings.crf import CrfSettings
from tagseg.settings.masks import MaskSettings
from tagseg.settings.segment import SegmentSettings
from tagseg.settings.settings import Settings

SIZE = (20, 24)
STRANGE = "a'; drop table decisions; --/ü b"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    (tmp_path / "data").mkdir()
    settings = Settings(workers=0, masks=MaskSettings("rest"), crf=CrfSettings(0), segment=SegmentSettings(rounds=2))
    return open_run(tmp_path / "run", tmp_path / "data", settings)


@pytest.fixture
def made(run: Run, tmp_path: Path) -> Prepared:
    """Return three images with masks of classes 1 (left) and 2 (right) in a run whose stage masks has finished."""
    samples = tuple(Sample(name, tmp_path / "data" / f"{i}.png", (1, 2)) for i, name in enumerate(("a", "b", STRANGE)))
    maps = np.zeros((2, *SIZE))
    maps[0, :, :12], maps[1, :, 12:] = 0.6, 0.7
    for sample in samples:
        Image.new("RGB", SIZE[::-1], "grey").save(sample.image)
        for source in (run, run.round(1)):
            write_maps(map_file(source, sample.id), maps, (1, 2))
    prepared = Prepared(Dataset(tmp_path, "folder", ("x", "y"), samples), {sample.id: SIZE for sample in samples})
    with run.stage("masks"):
        make_masks(prepared, run)
    return prepared


def mask(run: Run, name: str, decided: bool = False) -> np.ndarray:
    return read_mask_file(mask_file(run.decided_masks if decided else run.masks, name))


def test_decisions_are_read_as_stored_and_replace_earlier_ones(run: Run) -> None:
    assert decisions(run) == {} and decision_of(run, "a") == OPEN and accepted_masks(run, "a") is None
    assert not run.review.exists(), "reading creates no files"
    for decision in (Decision("flagged"), Decision("open", (2, 1), 0.3), Decision("rejected")):
        record_decision(run, STRANGE, decision)
        assert decision_of(run, STRANGE) == decision
    decided, sure = np.eye(3, 5, dtype=np.uint8), np.full((3, 5), VOID, np.uint8)
    record_decision(run, "b", Decision("accepted"), (decided, sure))
    assert decisions(run) == {STRANGE: Decision("rejected"), "b": Decision("accepted")}
    kept = accepted_masks(run, "b")
    assert kept is not None and (kept[0] == decided).all() and (kept[1] == sure).all()
    record_decision(run, "b", OPEN)
    assert decision_of(run, "b") == OPEN and accepted_masks(run, "b") is None
    assert run.round(1).decisions_file == run.decisions_file, "rounds of self-training share them"


def test_only_decisions_that_change_masks_have_a_digest(run: Run) -> None:
    masks = np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.uint8)
    record_decision(run, "open", OPEN)
    record_decision(run, "flagged", Decision("flagged"))
    record_decision(run, "off", Decision("flagged", (1,)))
    record_decision(run, "moved", Decision("open", (), 0.4))
    record_decision(run, "accepted", Decision("accepted"), masks)
    found = decision_digests(run)
    assert set(found) == {"off", "moved", "accepted"} and len(set(found.values())) == 3
    record_decision(run, "accepted", Decision("accepted"), (masks[0] + 1, masks[1]))
    assert decision_digests(run)["accepted"] != found["accepted"], "another mask was accepted"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"threshold": 1.0}, "threshold 1.0: expected a number between 0 and 1"),
        ({"threshold": float("nan")}, "threshold nan"),
        ({"off": (0,)}, r"off \(0,\): expected class ids"),
        ({"off": (255,)}, "off"),
    ],
)
def test_wrong_decisions_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(OPEN, **values)  # type: ignore[arg-type]


def test_a_damaged_database_is_named(run: Run) -> None:
    record_decision(run, "a", Decision("flagged"))
    run.decisions_file.write_bytes(b"no database at all" * 100)
    with pytest.raises(RunError, match=r"decisions\.sqlite: cannot be read or written"):
        decisions(run)


@pytest.mark.parametrize(
    "sql",
    [
        "drop table decisions; create view decisions as with recursive n(i) as (values(1) union all select i from n) "
        "select i as id, 'open' as verdict, '[]' as off, 0.5 as threshold, null as decided, null as sure from n",
        "create table more(x)",
        "create trigger t after insert on decisions begin delete from decisions; end",
    ],
)
def test_sql_in_an_untrusted_database_is_never_run(run: Run, sql: str) -> None:
    record_decision(run, "a", Decision("flagged"))
    with contextlib.closing(sqlite3.connect(run.decisions_file)) as database, database:
        database.executescript(sql)
    for ask in (decisions, decision_digests, check_database, lambda run: record_decision(run, "b", OPEN)):
        with pytest.raises(RunError, match=r"decisions\.sqlite: damaged \(its tables are not those of tagseg\)"):
            ask(run)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("verdict", "sure", "verdict 'sure'"),
        ("verdict", b"\xff", "verdict is b.*, expected text"),
        ("off", "[1.5]", r"off\[0\]: expected a whole number, found a number"),
        ("off", "[" * 9000, r"off\[0\]: expected a whole number, found a list"),
        ("threshold", "much", "threshold is 'much'"),
        ("id", b"\xff", "id is b"),
    ],
)
def test_a_damaged_decision_is_named(run: Run, column: str, value: object, message: str) -> None:
    record_decision(run, "a", Decision("flagged"))
    with contextlib.closing(sqlite3.connect(run.decisions_file)) as database, database:
        database.execute(f"update decisions set {column} = ?", (value,))
    with pytest.raises(RunError, match=rf"decisions\.sqlite: damaged \({message}"):
        decisions(run)


def test_accepted_masks_of_another_size_are_ignored_and_damaged_ones_are_named(run: Run) -> None:
    mask = np.ones(SIZE, np.uint8)
    record_decision(run, "a", Decision("accepted"), (mask, mask))
    kept = accepted_masks(run, "a", SIZE)
    assert kept is not None and (kept[0] == mask).all() and accepted_masks(run, "a", (20, 25)) is None
    for content in (b"\x89PNG", None, "text"):
        with contextlib.closing(sqlite3.connect(run.decisions_file)) as database, database:
            database.execute("update decisions set sure = ?", (content,))
        with pytest.raises(RunError, match=r"decisions\.sqlite: damaged \(the accepted mask of image 'a'"):
            accepted_masks(run, "a", SIZE)


def test_a_decision_survives_the_death_of_its_process(run: Run) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from tagseg.run.folder import Run\n"
        "from tagseg.run.decisions import Decision, record_decision\n"
        "record_decision(Run(Path(sys.argv[1])), 'a', Decision('rejected')); os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(tagseg.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code, str(run.root)], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL and decision_of(run, "a") == Decision("rejected")


def test_the_threshold_is_where_a_class_beats_background() -> None:
    maps = np.linspace(0.05, 0.95, 19, dtype=np.float32).reshape(1, 1, 19)
    before = label_probabilities(maps, MaskSettings("rest"), (0.5,))
    assert shift_background(before, 0.5) is before
    for threshold in (0.225, 0.675):
        after = shift_background(before, threshold)
        assert np.allclose(after.sum(0), 1, atol=1e-6)
        assert ((after[1] > after[0]) == (maps[0] > threshold)).all()


def test_only_masks_with_decisions_change(run: Run, made: Prepared) -> None:
    before = {name: mask(run, name, True) for name in ("a", "b", STRANGE)}
    assert set(np.unique(before["a"])) == {1, 2}
    untouched = mask_file(run.masks, "b").stat().st_mtime_ns
    record_decision(run, "a", Decision("open", (2,)))
    record_decision(run, STRANGE, Decision("rejected"))
    assert update_masks(made, run) == ("a", STRANGE)
    assert (mask(run, "a", True)[:, :11] == 1).all() and (mask(run, "a", True)[:, 13:] == 0).all()
    assert (mask(run, STRANGE) == VOID).all() and (mask(run, STRANGE, True) == VOID).all()
    assert mask_file(run.masks, "b").stat().st_mtime_ns == untouched
    assert update_masks(made, run) == (), "the masks are up to date"
    noted = run.manifest().stages["masks"]
    assert noted.reviewed == decision_digests(run)
    content = mask_file(run.masks, "a").read_bytes()
    assert noted.files["masks/a.png"] == hashlib.sha256(content).hexdigest()
    record_decision(run, "a", OPEN)
    record_decision(run, STRANGE, Decision("open", (), 0.65))
    assert update_masks(made, run) == ("a", STRANGE)
    assert (mask(run, "a", True) == before["a"]).all()
    assert set(np.unique(mask(run, STRANGE, True)[:, :11])) == {0} and (mask(run, STRANGE, True)[:, 13:] == 2).all()


def test_accepted_masks_stay_when_maps_change(run: Run, made: Prepared) -> None:
    mine = np.full(SIZE, 2, np.uint8), np.full(SIZE, VOID, np.uint8)
    record_decision(run, "a", Decision("accepted", (1,), 0.4), mine)
    update_masks(made, run)
    for name in ("a", "b"):
        write_maps(map_file(run, name), np.full((2, *SIZE), 0.01), (1, 2))
        for folder in (run.masks, run.decided_masks):
            mask_file(folder, name).unlink()
    make_masks(made, run)
    assert (mask(run, "a", True) == 2).all() and (mask(run, "a") == VOID).all()
    assert (mask(run, "b", True) == 0).all()


def test_masks_of_self_training_change_too(run: Run, made: Prepared) -> None:
    later = run.round(1)
    for file in (run.settings_file, run.manifest_file):
        (later.root / file.name).write_bytes(file.read_bytes())
    with run.stage("segment"):
        make_masks(made, later)
    assert unlearned(run) == 0
    record_decision(run, "b", Decision("rejected"))
    assert unlearned(run) == 1
    assert update_masks(made, run) == ("b",)
    assert (mask(later, "b") == VOID).all() and run.done("segment") and unlearned(run) == 1


def test_a_network_partly_trained_on_older_masks_is_discarded(run: Run, made: Prepared) -> None:
    (run.segmenter / "checkpoint.safetensors").parent.mkdir()
    (run.segmenter / "checkpoint.safetensors").write_bytes(b"half")
    update_masks(made, run)
    assert (run.segmenter / "checkpoint.safetensors").exists(), "there is no decision yet"
    record_decision(run, "b", Decision("rejected"))
    update_masks(made, run)
    assert not run.segmenter.exists()


def test_making_one_mask_reads_its_decision_only(run: Run, made: Prepared) -> None:
    record_decision(run, "a", Decision("open", (1, 2)))
    decided, sure = mask_sample(run, made.dataset.samples[0], SIZE, run.settings(), decision_of(run, "a"))
    assert (decided == 0).all() and not (sure == 1).any() and not (sure == 2).any()
    with sqlite3.connect(run.decisions_file) as database:
        assert database.execute("select count(*) from decisions").fetchone() == (1,)


def test_a_file_without_a_table_holds_no_decision(run: Run) -> None:
    run.review.mkdir()
    run.decisions_file.touch()  # as a kill, or a full disk, before the first decision leaves it
    assert decisions(run) == {} and decision_of(run, "a") == OPEN and decision_digests(run) == {}
    assert accepted_masks(run, "a") is None
    check_database(run)
    record_decision(run, "a", Decision("rejected"))
    assert decisions(run) == {"a": Decision("rejected")}
