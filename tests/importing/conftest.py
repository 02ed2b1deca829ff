import pytest

from tagseg.run.folder import Run


@pytest.fixture
def run(masked_run: Run) -> Run:
    """Return a run with masks and predictions."""
    return masked_run
