"""The wheel is whole, and works in a clean environment away from the source tree."""

import email
import os
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import tagseg

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ("fit", "predict", "inspect", "demo")


def run(*command: str | Path, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command that knows nothing of this checkout or of the environment the tests run in."""
    hidden = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=900
    )
    assert not check or done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done


def clean_environment(folder: Path) -> Path:
    """Create an empty virtual environment and return the folder of its programs."""
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    return folder / ("Scripts" if os.name == "nt" else "bin")


def check_tagseg(programs: Path, cwd: Path) -> None:
    """Assert that the environment's own tagseg is what answers, and that its help names the commands."""
    where = run(programs / "python", "-c", "import tagseg; print(tagseg.__file__)", cwd=cwd).stdout.strip()
    assert Path(where).is_relative_to(programs.parent)
    for command in ([programs / "tagseg"], [programs / "python", "-m", "tagseg"]):
        words = run(*command, "--help", cwd=cwd).stdout.split()
        assert not set(COMMANDS) - set(words), f"commands missing in the help: {' '.join(words)}"


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    # Not tmp_path: a full environment takes gigabytes, and must not outlive the test.
    with tempfile.TemporaryDirectory(prefix="tagseg-clean-") as folder:
        yield Path(folder).resolve()


def test_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    files = {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src" / "tagseg").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert "tagseg/py.typed" in files
    assert any(name.startswith("tagseg/report/templates/") for name in files)
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == files


def test_wheel_describes_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        information = f"tagseg-{tagseg.__version__}.dist-info"
        metadata = email.message_from_bytes(archive.read(f"{information}/METADATA"))
        licence = archive.read(f"{information}/licenses/LICENSE").decode()
    assert (metadata["Name"], metadata["Version"]) == ("tagseg", tagseg.__version__)
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert "Apache License" in licence and "END OF TERMS AND CONDITIONS" in licence


def test_wheel_works_without_the_source_tree(wheel: Path, elsewhere: Path) -> None:
    programs = clean_environment(elsewhere / "environment")
    run(sys.executable, "-m", "uv", "pip", "install", "--offline", "--no-deps", "--python", programs / "python", wheel,
        cwd=elsewhere)  # fmt: skip
    # The dependencies are borrowed. A folder named in a .pth file has its own .pth files ignored, so that an editable
    # install of this checkout among them stays invisible.
    (own,) = elsewhere.rglob("site-packages")
    borrowed = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    (own / "borrowed.pth").write_text("\n".join(borrowed) + "\n", encoding="utf-8")
    check_tagseg(programs, elsewhere)


@pytest.mark.slow
def test_wheel_installs_with_all_it_needs(wheel: Path, elsewhere: Path) -> None:
    programs = clean_environment(elsewhere / "environment")
    done = run(sys.executable, "-m", "uv", "pip", "install", "--python", programs / "python", wheel, cwd=elsewhere,
               check=False)  # fmt: skip
    unreachable = ("Connection refused", "failed to lookup address", "dns error", "operation timed out",
                   "network was disabled")  # fmt: skip
    if done.returncode and any(sign in done.stderr for sign in unreachable):
        pytest.skip(f"no package registry can be reached: {done.stderr.strip().splitlines()[-1].strip()}")
    assert done.returncode == 0, done.stderr
    run(programs / "python", "-c", "import torch, torchvision.ops, timm, segmentation_models_pytorch", cwd=elsewhere)
    check_tagseg(programs, elsewhere)
