"""Upload of a segmentation network to the Hugging Face Hub, in one commit."""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tagseg.errors import RunError
from tagseg.export.model import CARD, EXPORTED_FILES, export_model, is_export
from tagseg.run.folder import Run
from tagseg.run.hub import hub_errors, import_hub, require_repository
from tagseg.segment.load import load

MESSAGE = "Upload a segmentation network trained with tagseg"

_OF_THE_HUB = {".gitattributes", ".gitignore", "LICENSE", "LICENSE.md", CARD}
"""Files that a repository may hold before the first upload."""


@dataclass(frozen=True)
class Pushed:
    """What `push` uploaded or, in a dry run, would upload: bytes per file, and the address of the commit (empty in a
    dry run)."""

    repository: str
    files: dict[str, int]
    url: str = ""


def push(
    run: str | Path,
    to: str,
    private: bool = False,
    revision: str | None = None,
    message: str = MESSAGE,
    dry_run: bool = False,
) -> Pushed:
    """Upload a segmentation network to the Hugging Face Hub, where `tagseg.load("hf://owner/name")` finds it.

    The repository is created if it does not exist. All files are in one commit; those of an earlier upload that the
    network no longer has are deleted in it.

    Args:
        run: a run folder with a trained segmentation network, or a folder written by `tagseg export-model`.
        to: the repository, owner/name.
        private: only its owner may see the repository.
        revision: the branch, created if it does not exist; by default main.
        message: the message of the commit.
        dry_run: only return what would be uploaded; nothing is sent or asked for.

    Raises:
        RunError: when there is no trained network or it is damaged, `to` is not owner/name, there is no token, the
            repository exists and is public although `private` is asked for or holds something else, or the Hub refuses
            or cannot be reached.
    """
    require_repository(to, f"--to {to}", "owner/name")
    hub = import_hub()
    token = None if dry_run else hub.get_token()
    if not dry_run and not token:
        raise RunError("no token of the Hugging Face Hub; log in with `hf auth login`, or set HF_TOKEN")
    with _exported(Path(run)) as folder:
        files = {name: (folder / name).stat().st_size for name in EXPORTED_FILES if (folder / name).is_file()}
        if dry_run:
            return Pushed(to, files)
        with hub_errors(to):
            return Pushed(to, files, _commit(hub, folder, list(files), to, private, revision, message))


@contextlib.contextmanager
def _exported(path: Path) -> Iterator[Path]:
    """Yield an exported folder: the one that was given, which must be intact, or one made of the run."""
    if Run(path).manifest_file.exists() or not is_export(path):
        with tempfile.TemporaryDirectory() as temporary:
            yield export_model(path, Path(temporary) / "model").folder
        return
    load(path, "cpu")
    yield path


def _commit(
    hub: Any, folder: Path, names: list[str], to: str, private: bool, revision: str | None, message: str
) -> str:
    api = hub.HfApi(library_name="tagseg")
    api.create_repo(to, private=private or None, exist_ok=True)
    # The Hub ignores the wish for privacy if the repository exists.
    if private and not api.model_info(to).private:
        raise RunError(
            f"{to}: exists and is public, but --private was given; make it private on its page, or choose another --to"
        )
    if revision is not None:
        api.create_branch(to, branch=revision, exist_ok=True)
    present = set(api.list_repo_files(to, revision=revision))
    if present - _OF_THE_HUB and "network.json" not in present:
        some = ", ".join(sorted(present - _OF_THE_HUB)[:5])
        raise RunError(f"{to}: holds files that no tagseg push wrote ({some}); choose another --to")
    operations = [hub.CommitOperationAdd(name, str(folder / name)) for name in names]
    outdated = sorted(present.intersection(EXPORTED_FILES) - set(names))
    operations += [hub.CommitOperationDelete(name) for name in outdated]
    return str(api.create_commit(to, operations, commit_message=message, revision=revision).commit_url)
