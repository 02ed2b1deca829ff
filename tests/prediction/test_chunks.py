from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagseg.prediction.chunks import Chunk, chunk_size, cut_chunks
from tagseg.prediction.find_images import Location
from tagseg.segment.resolution import Resolution


def images(count: int) -> dict[str, Location]:
    return {str(number): Path(f"{number}.jpg") for number in range(count)}


def test_single_images_need_no_neighbours() -> None:
    found = images(7)
    shares = cut_chunks(found, ["1", "2", "4", "6"], 3, batch=1)
    assert [list(share.images) for share in shares] == [["1", "2", "4"], ["6"]]
    assert all(set(share.images) == share.wanted for share in shares)


def test_batches_keep_their_neighbours() -> None:
    found = images(10)
    whole = cut_chunks(found, found, 4, batch=2)
    assert [list(share.images) for share in whole] == [list("0123"), list("4567"), list("89")]
    # After an interruption: the shares that have anything to do are the same, with the same images.
    rest = cut_chunks(found, ["5", "8", "9"], 4, batch=2)
    assert rest == [Chunk(whole[1].images, frozenset("5")), whole[2]]
    assert cut_chunks(found, [], 4, batch=2) == []


@given(st.integers(0, 40), st.integers(1, 7), st.integers(1, 3), st.data())
def test_every_image_that_is_wanted_is_in_one_share(count: int, size: int, batch: int, data: st.DataObject) -> None:
    found = images(count)
    todo = data.draw(st.lists(st.sampled_from(sorted(found)), unique=True)) if found else []
    shares = cut_chunks(found, todo, size, batch)
    wanted = [name for share in shares for name in share.images if name in share.wanted]
    assert wanted == [name for name in found if name in todo]
    assert all(0 < len(share.images) <= size and share.wanted for share in shares)


@pytest.mark.parametrize(
    ("resolution", "batch", "size"),
    [
        (Resolution(500, 500), 1, 16),
        (Resolution(500, 500), 8, 128),
        (Resolution(64, 512), 2, 32),
        (Resolution(1000, 500), 1, 4),  # four times the pixels
        (Resolution(0, 500), 8, 8),  # whatever size: up to 120 megapixels each
        (Resolution(0, 500), 1, 1),
    ],
)
def test_large_pictures_come_in_small_shares(resolution: Resolution, batch: int, size: int) -> None:
    assert chunk_size(batch, resolution, 120.0) == size
