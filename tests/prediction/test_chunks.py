from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagseg.prediction.chunks import Chunk, chunk_size, cut_chunks
from tagseg.prediction.find_images import Location
from tagseg.segment.resolution import Resolution


def images(count: int) -> dict[str, Location]:
    return {str(number): Path(f"{number}.jpg") for number in range(count)}


def test_a_batch_of_one_image_needs_no_neighbours() -> None:
    found = images(7)
    chunks = cut_chunks(found, ["1", "2", "4", "6"], 3, batch=1)
    assert [list(chunk.images) for chunk in chunks] == [["1", "2", "4"], ["6"]]
    assert all(set(chunk.images) == chunk.wanted for chunk in chunks)


def test_larger_batches_keep_their_neighbours() -> None:
    found = images(10)
    whole = cut_chunks(found, found, 4, batch=2)
    assert [list(chunk.images) for chunk in whole] == [list("0123"), list("4567"), list("89")]
    # After an interruption, the chunks with anything left to do are the same, with the same images.
    rest = cut_chunks(found, ["5", "8", "9"], 4, batch=2)
    assert rest == [Chunk(whole[1].images, frozenset("5")), whole[2]]
    assert cut_chunks(found, [], 4, batch=2) == []


@given(st.integers(0, 40), st.integers(1, 7), st.integers(1, 3), st.data())
def test_every_wanted_image_is_in_exactly_one_chunk(count: int, size: int, batch: int, data: st.DataObject) -> None:
    found = images(count)
    todo = data.draw(st.lists(st.sampled_from(sorted(found)), unique=True)) if found else []
    chunks = cut_chunks(found, todo, size, batch)
    wanted = [name for chunk in chunks for name in chunk.images if name in chunk.wanted]
    assert wanted == [name for name in found if name in todo]
    assert all(0 < len(chunk.images) <= size and chunk.wanted for chunk in chunks)


@pytest.mark.parametrize(
    ("resolution", "batch", "size"),
    [
        (Resolution(500, 500), 1, 16),
        (Resolution(500, 500), 8, 128),
        (Resolution(64, 512), 2, 32),
        (Resolution(1000, 500), 1, 4),  # four times the pixels
        (Resolution(0, 500), 8, 8),  # not reduced: up to 120 megapixels each
        (Resolution(0, 500), 1, 1),
    ],
)
def test_large_pictures_are_in_small_chunks(resolution: Resolution, batch: int, size: int) -> None:
    assert chunk_size(batch, resolution, 120.0) == size
