"""Networks on the Hugging Face Hub: what hf://owner/name@revision stands for, and how it is fetched.

Only weights as safetensors and their description as JSON are fetched, into the cache of huggingface_hub (HF_HOME). Its
own settings apply: HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE.
"""

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tagseg.errors import RunError
from tagseg.run.folder import EXPORTED_WEIGHTS, TRAINED_WEIGHTS
from tagseg.system.records import read_json

_ADDRESS = re.compile(r"hf:/{1,2}(?P<repository>[^@]*)(?:@(?P<revision>.*))?", re.DOTALL)
"""pathlib turns hf:// into hf:/."""


@dataclass(frozen=True)
class HubNetwork:
    """A network on the Hub: `owner/name`, and a branch, tag or commit; None is the newest version."""

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"hf://{self.repository}" + (f"@{self.revision}" if self.revision else "")


def is_hub_address(path: str | Path) -> bool:
    """Tell whether a network is given by its address on the Hub, not as a folder."""
    return _ADDRESS.fullmatch(str(path)) is not None and not Path(path).exists()


def parse_hub_address(path: str | Path) -> HubNetwork:
    """Return what hf://owner/name or hf://owner/name@revision stands for.

    Raises:
        RunError: when it has another form.
    """
    found = _ADDRESS.fullmatch(str(path))
    if found is None or found["revision"] == "":
        raise RunError(f"{path}: expected hf://owner/name or hf://owner/name@revision")
    require_repository(
        found["repository"], f"hf://{found['repository']}", "hf://owner/name or hf://owner/name@revision"
    )
    return HubNetwork(found["repository"], found["revision"])


def require_repository(name: str, shown: str, expected: str) -> None:
    """Check the form of a repository's name, owner/name.

    Raises:
        RunError: naming it as `shown`, and the `expected` form.
    """
    hub = import_hub()
    try:
        hub.utils.validate_repo_id(name)
    except ValueError as error:
        raise RunError(f"{shown}: {str(error).rstrip('.')}; expected {expected}") from error
    if name.count("/") != 1:
        raise RunError(f"{shown}: expected {expected}")


def fetch_network(network: HubNetwork, check: Callable[[object, Path], object]) -> Path:
    """Return the folder of huggingface_hub's cache with a network of the Hub; what is missing there is fetched.

    The description is fetched first: `check` gets it and its file, and raises an error before the weights are fetched.
    Without a connection, what the cache has is used.

    Raises:
        RunError: when the network does not exist or is not accessible, is not one of tagseg, or is not in the cache and
            the Hub cannot be reached.
    """
    hub = import_hub()
    with hub_errors(str(network)):
        try:
            described = Path(hub.hf_hub_download(network.repository, "network.json", revision=network.revision))
        except hub.utils.LocalEntryNotFoundError:
            raise
        except hub.utils.EntryNotFoundError as error:
            raise RunError(
                f"{network}: not a network of tagseg (it has no network.json); expected one from `tagseg push`"
            ) from error
        check(_read(described, network), described)
        # The snapshot's folder is named by its commit: the weights are those of this very version.
        commit = described.parent.name
        for weights in (EXPORTED_WEIGHTS, TRAINED_WEIGHTS):
            try:
                return Path(hub.hf_hub_download(network.repository, weights, revision=commit)).parent
            except hub.utils.LocalEntryNotFoundError:
                raise
            except hub.utils.EntryNotFoundError:
                continue
    raise RunError(f"{network}: not a complete network of tagseg (it has no {EXPORTED_WEIGHTS})")


def _read(file: Path, network: HubNetwork) -> Any:
    try:
        return read_json(file)
    except ValueError as error:
        raise RunError(f"{network}: its network.json is damaged ({error})") from error


@contextlib.contextmanager
def hub_errors(shown: str) -> Iterator[None]:
    """Turn the errors of huggingface_hub into ones that name what was asked for, and say what to do.

    Raises:
        RunError: for every error of the Hub or of the way to it.
    """
    hub = import_hub()
    known = hub.utils
    log_in = "log in with `hf auth login`, or set HF_TOKEN"
    try:
        yield
    except known.GatedRepoError as error:
        raise RunError(f"{shown}: its owner grants access on request; ask for it on its page, and {log_in}") from error
    except known.RepositoryNotFoundError as error:
        raise RunError(
            f"{shown}: not found on the Hugging Face Hub; check the name or, if it is private, {log_in}"
        ) from error
    except known.RevisionNotFoundError as error:
        raise RunError(f"{shown}: has no such revision; expected a branch, a tag or a commit") from error
    except known.LocalEntryNotFoundError as error:
        raise RunError(
            f"{shown}: not in the cache, and the Hugging Face Hub cannot be reached ({_reason(error)}); check the "
            "connection, HF_HUB_OFFLINE and HF_ENDPOINT"
        ) from error
    except known.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        refused = f"; the token has no right to this: {log_in} with another one" if status in (401, 403) else ""
        raise RunError(f"{shown}: the Hugging Face Hub answered {status} ({_reason(error)}){refused}") from error
    except RunError:
        raise
    except Exception as error:
        # Its client was requests, then httpx: without a connection each raises errors of its own.
        if not isinstance(error, ConnectionError) and type(error).__module__.partition(".")[0] not in _CLIENTS:
            raise
        raise RunError(
            f"{shown}: the Hugging Face Hub cannot be reached ({_reason(error)}); check the connection, "
            "HF_HUB_OFFLINE and HF_ENDPOINT"
        ) from error


_CLIENTS = ("httpx", "httpx2", "httpcore", "requests", "urllib3", "huggingface_hub")


def _reason(error: BaseException) -> str:
    told = str(getattr(error, "server_message", None) or error.__cause__ or error)
    return " ".join(told.split())[:300]


def import_hub() -> Any:
    """Return huggingface_hub.

    Raises:
        RunError: when it is not installed.
    """
    try:
        import huggingface_hub
        import huggingface_hub.utils
    except ImportError as error:
        raise RunError(
            "the Hugging Face Hub requires huggingface_hub; install it with pip install huggingface_hub"
        ) from error
    return huggingface_hub
