"""Upload to and download from the Hugging Face Hub, which a small server of the same addresses stands in for."""

import base64
import contextlib
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import tagseg
from tagseg.errors import RunError
from tagseg.export.model import export_model
from tagseg.export.push import push
from tagseg.run.folder import Run
from tagseg.run.hub import fetch_network, parse_hub_address
from tagseg.training.checkpoint import load_tensors, save_tensors

MakeRun = Callable[..., Run]
FILES = ("README.md", "config.json", "model.safetensors", "network.json")


class Hub:
    """Repositories in memory, behind the addresses of the Hub that huggingface_hub asks for."""

    def __init__(self) -> None:
        self.private: dict[str, bool] = {}
        self.branches: dict[tuple[str, str], str] = {}
        self.commits: dict[str, dict[str, bytes]] = {}
        self.messages: list[str] = []
        self.blobs: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.refused: int | None = None

    def app(self) -> Starlette:
        name = "{owner}/{name}"
        routes = [
            Route("/api/repos/create", self.create, methods=["POST"]),
            Route("/api/validate-yaml", self.ok, methods=["POST"]),
            Route(f"/api/models/{name}", self.info),
            Route(f"/api/models/{name}/revision/{{revision}}", self.info),
            Route(f"/api/models/{name}/tree/{{revision}}", self.tree),
            Route(f"/api/models/{name}/branch/{{revision}}", self.branch, methods=["POST"]),
            Route(f"/api/models/{name}/preupload/{{revision}}", self.preupload, methods=["POST"]),
            Route(f"/api/models/{name}/commit/{{revision}}", self.commit, methods=["POST"]),
            Route(f"/{name}.git/info/lfs/objects/batch", self.batch, methods=["POST"]),
            Route("/blobs/{oid}", self.store, methods=["PUT"]),
            Route(f"/{name}/resolve/{{revision}}/{{file}}", self.resolve),
        ]
        return Starlette(routes=routes)

    def add(self, repository: str, files: dict[str, bytes], private: bool = False, branch: str = "main") -> str:
        """Make a commit, and the repository if it does not exist."""
        self.private.setdefault(repository, private)
        commit = hashlib.sha1(f"{repository} {branch} {len(self.commits)}".encode()).hexdigest()
        self.commits[commit] = files
        self.branches[repository, branch] = commit
        return commit

    def files(self, repository: str, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches.get((repository, revision), revision)]

    def known(self, request: Request, write: bool = False) -> tuple[str, str] | Response:
        """Return the repository and the commit that a request asks for, or why it gets neither."""
        self.asked.append(f"{request.method} {request.url.path}")
        part = request.path_params
        repository, revision = f"{part['owner']}/{part['name']}", part.get("revision", "main")
        trusted = request.headers.get("authorization") == "Bearer good"
        if write and not trusted:
            return JSONResponse({"error": "Invalid credentials"}, 401)
        if self.refused:
            return JSONResponse({"error": "Out of order"}, self.refused)
        if repository not in self.private or (self.private[repository] and not trusted):
            return Response(status_code=404, headers={"X-Error-Code": "RepoNotFound"})
        commit = self.branches.get((repository, revision), revision)
        if commit not in self.commits:
            return Response(status_code=404, headers={"X-Error-Code": "RevisionNotFound"})
        return repository, commit

    async def ok(self, request: Request) -> Response:
        return JSONResponse({})

    async def create(self, request: Request) -> Response:
        self.asked.append(f"POST {request.url.path}")
        asked = await request.json()
        repository = f"{asked['organization']}/{asked['name']}"
        if request.headers.get("authorization") != "Bearer good" or asked["organization"] != "anna":
            return JSONResponse({"error": "You don't have the rights to create a model here"}, 403)
        answer = {"url": f"{request.base_url}{repository}"}
        if repository in self.private:
            return JSONResponse(answer, 409)
        self.add(
            repository,
            {".gitattributes": b""},
            "private" in (asked.get("visibility"), *(["private"] if asked.get("private") else [])),
        )
        return JSONResponse(answer)

    async def info(self, request: Request) -> Response:
        found = self.known(request)
        if isinstance(found, Response):
            return found
        return JSONResponse({"id": found[0], "sha": found[1], "private": self.private[found[0]], "siblings": []})

    async def tree(self, request: Request) -> Response:
        found = self.known(request)
        if isinstance(found, Response):
            return found
        files = self.commits[found[1]].items()
        return JSONResponse(
            [{"type": "file", "path": name, "size": len(content), "oid": oid(content)} for name, content in files]
        )

    async def branch(self, request: Request) -> Response:
        repository, name = (
            f"{request.path_params['owner']}/{request.path_params['name']}",
            request.path_params["revision"],
        )
        if (repository, name) in self.branches:
            return Response(status_code=409)
        self.add(repository, self.files(repository), branch=name)
        return JSONResponse({})

    async def preupload(self, request: Request) -> Response:
        found = self.known(request, write=True)
        if isinstance(found, Response):
            return found
        names = [file["path"] for file in (await request.json())["files"]]
        large = {name: "lfs" if name.endswith(".safetensors") else "regular" for name in names}
        return JSONResponse(
            {"files": [{"path": name, "uploadMode": large[name], "shouldIgnore": False} for name in names]}
        )

    async def batch(self, request: Request) -> Response:
        objects = (await request.json())["objects"]
        for one in objects:
            one["actions"] = {"upload": {"href": f"{request.base_url}blobs/{one['oid']}"}}
        return JSONResponse({"transfer": "basic", "objects": objects})

    async def store(self, request: Request) -> Response:
        content = await request.body()
        assert hashlib.sha256(content).hexdigest() == request.path_params["oid"]
        self.blobs[request.path_params["oid"]] = content
        return Response()

    async def commit(self, request: Request) -> Response:
        found = self.known(request, write=True)
        if isinstance(found, Response):
            return found
        files = dict(self.commits[found[1]])
        for line in (await request.body()).splitlines():
            step, value = (json.loads(line)[key] for key in ("key", "value"))
            if step == "header":
                self.messages.append(value["summary"])
            elif step == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif step == "lfsFile":
                files[value["path"]] = self.blobs[value["oid"]]
            else:
                assert step == "deletedFile"
                del files[value["path"]]
        commit = self.add(found[0], files, branch=request.path_params["revision"])
        return JSONResponse({"commitUrl": f"{request.base_url}{found[0]}/commit/{commit}", "commitOid": commit})

    async def resolve(self, request: Request) -> Response:
        found = self.known(request)
        if isinstance(found, Response):
            return found
        content = self.commits[found[1]].get(request.path_params["file"])
        if content is None:
            return Response(status_code=404, headers={"X-Error-Code": "EntryNotFound"})
        headers = {"X-Repo-Commit": found[1], "ETag": f'"{oid(content)}"', "Content-Length": str(len(content))}
        return Response(content, headers=headers)


def oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@pytest.fixture
def hub(
    serving: Callable[[Any], contextlib.AbstractContextManager[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Hub]:
    """A Hub without repositories that huggingface_hub talks to as anna, with a cache of its own."""
    hub = Hub()
    with serving(hub.app()) as port:
        address, constants = f"http://127.0.0.1:{port}", huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setenv("HF_TOKEN", "good")
        yield hub


def scores(network: Path | str) -> torch.Tensor:
    torch.manual_seed(1)
    with torch.no_grad():
        found: torch.Tensor = tagseg.load(network, "cpu").network(torch.rand(1, 3, 64, 48))
    return found


def test_a_pushed_network_is_loaded_from_the_hub(run: Run, tmp_path: Path, hub: Hub) -> None:
    done = push(run.root, "anna/cats", message="First")
    assert tuple(sorted(done.files)) == FILES and sorted(hub.files("anna/cats")) == [".gitattributes", *FILES]
    assert {name: len(content) for name, content in hub.files("anna/cats").items() if name in FILES} == done.files
    commit = hub.branches["anna/cats", "main"]
    assert (
        done.url.endswith(f"/anna/cats/commit/{commit}") and hub.messages == ["First"] and not hub.private["anna/cats"]
    )
    # The same files as in the folder, so the same network.
    export_model(run.root, tmp_path / "model")
    assert all(hub.files("anna/cats")[name] == (tmp_path / "model" / name).read_bytes() for name in FILES)
    hub.add("anna/cats", hub.files("anna/cats") | {"code.py": b"boom", "weights.bin": b"pickled"})
    assert torch.equal(scores("hf://anna/cats"), scores(tmp_path / "model"))
    # Only weights as safetensors and their description were fetched, into the cache.
    fetched = {path.name for path in (tmp_path / "cache").rglob("*") if path.is_symlink()}
    assert fetched == {"model.safetensors", "network.json"}
    assert not [line for line in hub.asked if "code.py" in line or "weights.bin" in line]
    # A commit in the cache needs no Hub at all.
    hub.asked.clear()
    assert torch.equal(scores(f"hf://anna/cats@{hub.branches['anna/cats', 'main']}"), scores(tmp_path / "model"))
    assert hub.asked == []


def test_without_a_connection_the_cache_is_used(run: Run, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    push(run.root, "anna/cats")
    before = scores("hf://anna/cats")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert torch.equal(scores("hf://anna/cats"), before)
    with pytest.raises(RunError, match=r"hf://anna/dogs: not in the cache, and the Hugging Face Hub cannot be reached"):
        tagseg.load("hf://anna/dogs")
    with pytest.raises(RunError, match=r"anna/cats: the Hugging Face Hub cannot be reached .*HF_HUB_OFFLINE"):
        push(run.root, "anna/cats")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(RunError, match=r"anna/cats: the Hugging Face Hub cannot be reached"):
        push(run.root, "anna/cats")


def test_a_dry_run_sends_nothing(run: Run, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    done = push(run.root, "anna/cats", private=True, dry_run=True)
    assert tuple(sorted(done.files)) == FILES and done.files["model.safetensors"] > 100_000 and done.url == ""
    assert hub.asked == [] and hub.private == {}


def test_private_and_branches(run: Run, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    push(run.root, "anna/cats", private=True, revision="v2")
    assert hub.private["anna/cats"] and sorted(hub.files("anna/cats")) == [".gitattributes"]
    assert torch.equal(scores("hf://anna/cats@v2"), scores(run.root))
    with pytest.raises(
        RunError, match=r"hf://anna/cats@v3: has no such revision; expected a branch, a tag or a commit"
    ):
        tagseg.load("hf://anna/cats@v3")
    with pytest.raises(RunError, match=r"hf://anna/cats: not a network of tagseg \(it has no network\.json\)"):
        tagseg.load("hf://anna/cats")
    monkeypatch.setenv("HF_TOKEN", "bad")
    with pytest.raises(RunError, match=r"hf://anna/cats: not found .* if it is private, log in with `hf auth login`"):
        tagseg.load("hf://anna/cats")
    # The Hub would upload to the public repository all the same.
    monkeypatch.setenv("HF_TOKEN", "good")
    hub.add("anna/open", {})
    with pytest.raises(RunError, match=r"anna/open: exists and is public, but --private was given"):
        push(run.root, "anna/open", private=True)
    assert hub.files("anna/open") == {}


def test_what_a_repository_holds_is_respected(run: Run, tmp_path: Path, hub: Hub) -> None:
    hub.add("anna/other", {"config.json": b"{}", "pytorch_model.bin": b"theirs"})
    with pytest.raises(RunError, match=r"anna/other: holds files that no tagseg push wrote \(config\.json, pytorch_"):
        push(run.root, "anna/other")
    assert hub.files("anna/other")["config.json"] == b"{}"
    # A model.onnx of an earlier upload belongs to another network; other files are the owner's.
    hub.add("anna/cats", {"network.json": b"old", "model.onnx": b"old", "notes.txt": b"mine", "README.md": b"old"})
    export_model(run.root, tmp_path / "model")
    push(tmp_path / "model", "anna/cats")
    assert sorted(hub.files("anna/cats")) == sorted([*FILES, "notes.txt"])
    assert hub.files("anna/cats")["README.md"] == (tmp_path / "model/README.md").read_bytes()
    # The same again changes nothing.
    assert push(tmp_path / "model", "anna/cats").files


def test_errors_say_what_to_do(run: Run, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cats", "a/b/c", "anna/ca ts", "anna/", "anna/x--y", ""):
        with pytest.raises(RunError, match=r"--to .*expected owner/name$"):
            push(run.root, name)
        with pytest.raises(RunError, match=r"hf://.*expected hf://owner/name or hf://owner/name@revision$"):
            tagseg.load(f"hf://{name}")
    with pytest.raises(RunError, match=r"hf://anna/cats@: expected hf://owner/name or hf://owner/name@revision"):
        tagseg.load("hf://anna/cats@")
    with pytest.raises(RunError, match=r"bob/cats: the Hugging Face Hub answered 403 .*rights.*the token has no right"):
        push(run.root, "bob/cats")
    with pytest.raises(RunError, match="not a run folder"):
        push(tmp_path, "anna/cats")
    hub.add("anna/ours", {})
    hub.refused = 503
    # huggingface_hub waits longer and longer between its attempts.
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda _: None, time=time.time))
    with pytest.raises(RunError, match=r"hf://anna/ours: .*Hub (answered 503|cannot be reached)"):
        tagseg.load("hf://anna/ours")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(
        RunError, match=r"no token of the Hugging Face Hub; log in with `hf auth login`, or set HF_TOKEN"
    ):
        push(run.root, "anna/cats")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for action in (lambda: push(run.root, "anna/cats"), lambda: tagseg.load("hf://anna/cats")):
        with pytest.raises(
            RunError, match="the Hugging Face Hub requires huggingface_hub; install it with pip install"
        ):
            action()


def test_damaged_networks_are_neither_pushed_nor_loaded(run: Run, tmp_path: Path, hub: Hub) -> None:
    model = tmp_path / "model"
    export_model(run.root, model)
    content = (model / "model.safetensors").read_bytes()
    damaged = content[:-64] + bytes(64)
    (model / "model.safetensors").write_bytes(damaged)
    with pytest.raises(RunError, match="its checksum does not match its content"):
        push(model, "anna/cats")
    assert hub.private == {}
    good = {"network.json": (model / "network.json").read_bytes(), "model.safetensors": content}
    hub.add("anna/damaged", good | {"model.safetensors": damaged})
    with pytest.raises(RunError, match=r"hf://anna/damaged: .*checksum does not match .*delete this folder and load"):
        tagseg.load("hf://anna/damaged")
    # What describes no network of ours is noticed before the weights are fetched.
    for described, message in ((b"[1]", "no description"), (b"{", "damaged"), (b'{"a": 1}', "does not describe")):
        hub.add("anna/foreign", good | {"network.json": described})
        hub.asked.clear()
        with pytest.raises(RunError, match=message):
            tagseg.load("hf://anna/foreign")
        assert not [line for line in hub.asked if "safetensors" in line]
    hub.add("anna/half", {"network.json": good["network.json"], "weights.bin": b"pickled"})
    with pytest.raises(RunError, match=r"hf://anna/half: not a complete network of tagseg \(it has no model\.safetens"):
        tagseg.load("hf://anna/half")
    # Weights of another network than the description's.
    tensors, about = load_tensors(run.segmenter / "network.safetensors")
    save_tensors(tmp_path / "other.safetensors", tensors, about | {"classes": ["background", "a", "b"]})
    hub.add("anna/mixed", good | {"model.safetensors": (tmp_path / "other.safetensors").read_bytes()})
    with pytest.raises(
        RunError, match=r"hf://anna/mixed: .*does not fit|hf://anna/mixed: .*model.safetensors in the same"
    ):
        tagseg.load("hf://anna/mixed")


def test_an_upload_of_version_0_1_is_loaded(run: Run, hub: Hub) -> None:
    names = ("network.json", "network.safetensors")
    hub.add("anna/old", {name: (run.segmenter / name).read_bytes() for name in names})
    assert torch.equal(scores("hf://anna/old"), scores(run.root))
    folder = fetch_network(parse_hub_address(Path("hf://anna/old")), lambda *_: None)
    assert {path.name for path in folder.iterdir()} == set(names)


def test_predict_takes_the_address(
    run: Run, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, call: Callable[..., tuple[int, str, str]]
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)).save("a.png")
    push(run.root, "anna/cats")
    options = ["a.png", "--out", "masks", "--device", "cpu", "--force"]
    masks = []
    for network in (str(run.root), "hf://anna/cats"):
        status, _, errors = call("predict", network, *options)
        assert status == 0, errors
        masks.append(Path("masks/a.png").read_bytes())
    assert masks[0] == masks[1]
    status, listed, _ = call("push", run.root, "--to", "anna/dogs", "--dry-run")
    assert status == 0 and "MB  model.safetensors" in listed
    assert "would be uploaded to anna/dogs; nothing was sent" in listed and "anna/dogs" not in hub.private
    status, _, errors = call("predict", "hf://cats", *options)
    assert status == 2 and "Error: hf://cats: expected hf://owner/name" in errors
