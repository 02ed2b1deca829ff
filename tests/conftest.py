"""What all tests share: checked shapes, fixed seeds, no network, and the optional real data."""

import os
import random
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from jaxtyping import install_import_hook

# Hugging Face's client reads this when it is imported, child processes inherit it: no test reaches for the network.
os.environ["HF_HUB_OFFLINE"] = "1"

# Tensors in tests are tiny: more threads only get in one another's way.
torch.set_num_threads(1)

# From here on the types and shapes in tagseg's signatures are checked at every call.
install_import_hook("tagseg", "beartype.beartype")

hypothesis.settings.register_profile("tagseg", deadline=None, derandomize=True)
hypothesis.settings.load_profile("tagseg")


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Start every test from the same random state."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder `shared` beside the checkout, with optional real `data` and `weights`."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "data").is_dir():
        pytest.skip(f"no real data: {folder / 'data'} does not exist")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked gpu where there is no CUDA device."""
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
