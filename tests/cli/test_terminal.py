"""What reaches a terminal, a browser and the list of processes."""

import errno
import logging
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tagseg.cli import review
from tagseg.cli.main import error_text, main, make_printable
from tagseg.errors import RunError, WriteError
from tagseg.run.memory import memory_named
from tagseg.settings.settings import Settings
from tagseg.training.device import choose_device

Call = Callable[..., tuple[int, str, str]]


def test_names_of_files_and_classes_cannot_drive_the_terminal(tmp_path: Path, call: Call) -> None:
    for i in range(2):
        file = tmp_path / "cat\x1b[2J" / f"{i}\x1b]0;mine\x07.png"
        file.parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 32), (i, 0, 0)).save(file)
    (file.parent / "broken\x1b[1A.png").write_bytes(b"none")
    status, out, error = call("inspect", tmp_path)
    assert status == 0 and "cat\\x1b[2J" in out.replace("\n", "") and "\x1b" not in out + error
    status, out, error = call("worst", tmp_path / "no\x1b[2Jrun")
    assert status == 2 and "no\\x1b[2Jrun" in error and "\x1b[2J" not in error


def test_what_is_logged_cannot_either() -> None:
    record = logging.LogRecord("tagseg.x", logging.WARNING, "", 0, "%s is broken", ("a\x1b[2J.jpg",), None)
    assert make_printable(record) and record.getMessage() == "a\\x1b[2J.jpg is broken"


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_closed_stream_is_not_an_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, name, None)
    with pytest.raises(SystemExit) as leaving:
        main(["worst", "nowhere"])
    assert leaving.value.code == 2


def test_errors_of_the_system_say_what_to_do() -> None:
    assert error_text(OSError(errno.EMFILE, "Too many open files", "a.jpg")).endswith("run the same command again")
    assert "TMPDIR" in error_text(OSError(errno.ENOSPC, "No space left on device"))
    assert error_text(WriteError("a: cannot be written: the disk is full")) == "a: cannot be written: the disk is full"


def test_the_list_of_processes_does_not_show_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    address, opened = "http://127.0.0.1:8000/a-secret-token/", list[str]()

    class Browser:
        def open(self, page: str) -> None:
            opened.append(page)

    monkeypatch.setattr("webbrowser.get", Browser)
    monkeypatch.setattr("threading.Thread", lambda target, daemon: type("Now", (), {"start": lambda self: target()})())
    review.open_browser(address)
    page = Path(opened[0].removeprefix("file://"))
    assert "secret" not in opened[0] and f"url={address}" in page.read_text()
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    page.unlink()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"seed": 2**32}, "seed must be 0 or more and at most 4294967295"),
        ({"segment": {"predict_scales": [1.0, 0.001]}}, "segment.predict_scales must be a list of 1 or more numbers"),
        ({"segment": {"max_side": 10**9}}, "segment.max_side must be 64 pixels or more and at most 32768 pixels"),
        ({"localise": {"scales": [1000.0]}}, "localise.scales must be a list of 1 or more numbers 0.05 or more"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(values: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Settings.from_dict(values)


@pytest.mark.parametrize(
    "message",
    [
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
        "shared memory. Please try to raise your shared memory limit.",
        "unable to write to file </torch_7_1>: No space left on device (28)",
        "unable to allocate shared memory(shm) for file </torch_7_1>: No space left on device (28)",
    ],
)
def test_a_small_shared_memory_is_named(message: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"shared memory .* \(/dev/shm\) is too small .*--shm-size=1g\), or use --work"):  # noqa: SIM117
        with memory_named(tmp_path, "train", Settings(workers=2)):
            raise RuntimeError(message)


def test_what_the_system_has_too_little_of_is_named(monkeypatch: pytest.MonkeyPatch, call: Call) -> None:
    def lacking(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("tagseg.cli.main.app", lacking)
    status, _, error = call("worst", "run")
    assert status == 2 and "needs more memory or threads than it may have (can't start new thread)" in error
    assert "ulimit -v" in error_text(OSError(errno.ENOMEM, "Cannot allocate memory"))


def test_an_enormous_name_does_not_fill_the_terminal() -> None:
    text = error_text(ValueError("x" * 1_000_000 + ": must be shorter"))
    assert len(text) < 5000 and text.endswith(": must be shorter")


def test_a_device_that_computes_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--device meta: not available here \('it computes nothing'\); try auto"):
        choose_device("meta")
    with pytest.raises(ValueError) as caught:
        choose_device("xla")
    assert len(str(caught.value)) < 400
