from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tagseg.errors import RunError
from tagseg.training.checkpoint import (
    load_tensors,
    optimizer_tensors,
    read_about,
    restore,
    restore_optimizer,
    save_tensors,
    select,
)


def test_saved_and_loaded_tensors_are_identical(tmp_path: Path) -> None:
    tensors = {
        "weight": torch.randn(2, 3),
        "half": torch.randn(3).half(),
        "brain": torch.randn(3).bfloat16(),
        "count": torch.tensor(7),
        "exists": torch.tensor([True, False]),
        "empty": torch.zeros(0, 4),
        "special": torch.tensor([torch.nan, torch.inf, -0.0]),
    }
    about = {"classes": ["Löwe", "<b>", "猫"], "history": [{"epoch": 1, "loss": 0.1}]}
    save_tensors(tmp_path / "deep" / "state.safetensors", tensors, about)
    loaded, read = load_tensors(tmp_path / "deep" / "state.safetensors")
    assert read == about
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype and loaded[name].shape == tensor.shape
        assert torch.equal(loaded[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)), name
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["state.safetensors"]


def test_shared_and_strided_tensors_are_saved_apart(tmp_path: Path) -> None:
    base = torch.arange(24.0).view(1, 2, 3, 4)
    tensors = {"one": base, "two": base, "part": base[..., 1:], "last": base.to(memory_format=torch.channels_last)}
    tensors["learning"] = nn.Parameter(base[0].transpose(0, 2))
    save_tensors(tmp_path / "state.safetensors", tensors, {})
    loaded, about = load_tensors(tmp_path / "state.safetensors")
    assert about == {}
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


def test_same_tensors_make_the_same_bytes(tmp_path: Path) -> None:
    tensors = {"b": torch.ones(3), "a": torch.zeros(2)}
    for name in ("one", "two"):
        save_tensors(tmp_path / name, tensors, {"seed": 1})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_foreign_files_have_no_about(tmp_path: Path) -> None:
    save_file({"x": torch.ones(1)}, tmp_path / "foreign.safetensors")
    assert load_tensors(tmp_path / "foreign.safetensors") == ({"x": torch.ones(1)}, {})


def test_missing_and_damaged_files(tmp_path: Path) -> None:
    save_tensors(tmp_path / "good.safetensors", {"x": torch.ones(100)}, {})
    content = (tmp_path / "good.safetensors").read_bytes()
    (tmp_path / "short.safetensors").write_bytes(content[:-10])
    (tmp_path / "empty.safetensors").touch()
    torch.save({"x": torch.ones(1)}, tmp_path / "pickle.safetensors")
    save_file({"x": torch.ones(1)}, tmp_path / "about.safetensors", metadata={"tagseg": "{no json"})
    for name in ("missing", "short", "empty", "pickle", "about"):
        with pytest.raises(RunError, match=rf"{name}.safetensors: missing or damaged"):
            load_tensors(tmp_path / f"{name}.safetensors")


def test_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "state.safetensors"
    save_tensors(file, {"x": torch.ones(1)}, {})
    with pytest.raises(TypeError):
        save_tensors(file, {"x": torch.zeros(1)}, {"path": Path("no json")})
    assert load_tensors(file)[0]["x"].item() == 1
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]


def test_restore_names_the_file_when_the_network_is_another() -> None:
    module = nn.Linear(3, 2)
    restore(module, {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}, Path("x"))
    assert torch.equal(module.weight, torch.ones(2, 3))
    for tensors in ({"weight": torch.ones(2, 3)}, {"weight": torch.ones(3, 3), "bias": torch.zeros(2)}):
        with pytest.raises(RunError, match=r"folder/net.safetensors: does not fit the network"):
            restore(module, tensors, Path("folder/net.safetensors"))


def test_select_takes_one_prefix() -> None:
    tensors = {"net.a": torch.ones(1), "net.b.c": torch.ones(2), "network.a": torch.ones(3), "net": torch.ones(4)}
    assert {name: len(tensor) for name, tensor in select(tensors, "net").items()} == {"a": 1, "b.c": 2}


def step(module: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    optimizer.zero_grad()
    module(torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("kind", ["momentum", "adam", "before the first step"])
def test_a_restored_optimizer_continues_like_an_uninterrupted_one(kind: str, tmp_path: Path) -> None:
    def build() -> tuple[nn.Linear, torch.optim.Optimizer]:
        torch.manual_seed(0)
        module = nn.Linear(3, 2)
        if kind == "adam":
            return module, torch.optim.Adam(module.parameters(), lr=0.1)
        return module, torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, nesterov=True)

    module, optimizer = build()
    for seed in range(0 if kind == "before the first step" else 3):
        step(module, optimizer, seed)
    state = {f"net.{name}": value for name, value in module.state_dict().items()}
    save_tensors(tmp_path / "state.safetensors", state | optimizer_tensors(optimizer), {})
    other, other_optimizer = build()
    tensors, _ = load_tensors(tmp_path / "state.safetensors")
    restore(other, select(tensors, "net"), tmp_path / "state.safetensors")
    restore_optimizer(other_optimizer, tensors, tmp_path / "state.safetensors")
    for seed in range(3, 6):
        step(module, optimizer, seed)
        step(other, other_optimizer, seed)
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in module.state_dict().items())


def test_restored_optimizer_keeps_its_own_learning_rate() -> None:
    module = nn.Linear(3, 2)
    old, new = (torch.optim.SGD(module.parameters(), lr=lr, momentum=0.9) for lr in (0.1, 0.5))
    step(module, old, 0)
    restore_optimizer(new, optimizer_tensors(old), Path("x"))
    assert new.param_groups[0]["lr"] == 0.5
    assert torch.equal(new.state[module.weight]["momentum_buffer"], old.state[module.weight]["momentum_buffer"])


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Return a file whose tensors and description have a checksum."""
    save_tensors(tmp_path / "net.safetensors", {"a": torch.ones(2, 3), "b": torch.zeros(2, 3)}, {"stride": 16})
    return tmp_path / "net.safetensors"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"\x80?", b"\x81?"),  # a weight
        (b'"a":', b'"c":'),  # a name
        (b'\\"stride\\": 16', b'\\"stride\\": 32'),  # the description
        (b"[2,3]", b"[3,2]"),  # a shape
        (b'sha256\\": \\"', b'sha256\\": \\"x'),
    ],
)
def test_a_changed_file_is_refused(old: bytes, new: bytes, saved: Path) -> None:
    content = saved.read_bytes()
    assert old in content and len(old) <= len(new) <= len(old) + 1
    changed = content.replace(old, new, 1)
    if len(new) > len(old):  # one sign more in the header
        changed = (int.from_bytes(content[:8], "little") + 1).to_bytes(8, "little") + changed[8:]
    saved.write_bytes(changed)
    with pytest.raises(RunError, match=r"net\.safetensors: missing or damaged"):
        load_tensors(saved)


def test_files_without_checksum_are_read(saved: Path) -> None:
    save_file(load_tensors(saved)[0], saved, metadata={"tagseg": '{"stride": 16}'})
    assert load_tensors(saved)[1] == {"stride": 16} == read_about(saved)


@pytest.mark.parametrize("claimed", [10 * 2**30, 2**64 - 1, 2**24 + 1])
def test_a_header_that_claims_gigabytes_is_refused(claimed: int, saved: Path) -> None:
    saved.write_bytes(claimed.to_bytes(8, "little") + saved.read_bytes()[8:])
    with pytest.raises(RunError, match=rf"a header of {claimed} bytes, expected at most"):
        load_tensors(saved)


def test_tensors_that_are_not_expected_are_not_even_read(saved: Path) -> None:
    with torch.device("meta"):
        fitting = {"a": torch.ones(2, 3), "b": torch.ones(2, 3)}
        others = [{"a": torch.ones(2, 3)}, fitting | {"c": torch.ones(1)}, fitting | {"b": torch.ones(10**6, 10**6)},
                  fitting | {"b": torch.ones(2, 3, dtype=torch.float64)}]  # fmt: skip
    assert load_tensors(saved, lambda about: fitting if about["stride"] == 16 else {})[0].keys() == fitting.keys()
    for other in others:
        with pytest.raises(RunError, match=r"net\.safetensors: does not fit the network: '[bc]' is"):
            load_tensors(saved, lambda _, other=other: other)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bias": torch.tensor([0.0, torch.nan])}, "bias holds values that are not finite"),
        ({"weight": torch.full((2, 3), -torch.inf)}, "weight holds values that are not finite"),
        ({"weight": torch.ones(2, 3).double()}, r"'weight' is float64 of \(2, 3\), expected float32 of \(2, 3\)"),
        ({"more": torch.ones(1)}, r"'more' is float32 of \(1,\), expected no such tensor"),
    ],
)
def test_a_state_of_other_kinds_or_no_numbers_is_refused(change: dict[str, torch.Tensor], message: str) -> None:
    tensors = {"weight": torch.ones(2, 3), "bias": torch.zeros(2)} | change
    with pytest.raises(RunError, match=f"^x: .*{message}"):
        restore(nn.Linear(3, 2), tensors, Path("x"))


@pytest.mark.parametrize("name", ["optimizer.x.momentum_buffer", "optimizer.-1.m", "optimizer.2.m", "optimizer.1.m"])
def test_optimizer_states_of_no_parameter_are_refused(name: str) -> None:
    module = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    with pytest.raises(RunError, match="x: does not fit the training: optimizer"):
        restore_optimizer(optimizer, {name: torch.ones(2, 3)}, Path("x"))
