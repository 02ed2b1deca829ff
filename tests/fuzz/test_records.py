"""Every kind of record, found in the code, is fed with invented documents: it reads them or raises a ValueError."""

import json

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tagseg.system.records import Record, parse_record, record_kinds, record_line, record_text

KINDS = record_kinds()

LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    | st.sampled_from([10**30, 10**400, -1, 0, 1, 0.5, "train", "\ud800", "x" * 3000])
)  # fmt: skip
TREES = st.recursive(
    LEAVES,
    lambda part: st.lists(part, max_size=4) | st.dictionaries(st.text(max_size=5) | st.just("1"), part, max_size=4),
)


def documents(kind: type[Record]) -> st.SearchStrategy[bytes]:
    """Return invented documents with the keys of a kind, or of none."""
    names = [field.encode_name for field in msgspec.structs.fields(kind)]
    like = st.dictionaries(st.sampled_from(names), TREES, max_size=len(names))
    text = (TREES | like | like).map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass"))
    cut = st.tuples(text, st.integers(0, 200)).map(lambda pair: pair[0][: pair[1]])
    return text | text | cut | st.binary(max_size=50)


def test_there_are_kinds() -> None:
    assert {"Manifest", "DataFile", "Evaluation", "ImageQuality", "PredictionLine"} <= {kind.__name__ for kind in KINDS}


@pytest.mark.parametrize("lenient", [False, True])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_any_document_is_read_or_refused(kind: type[Record], lenient: bool) -> None:
    @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
    @given(documents(kind))
    def feed(content: bytes) -> None:
        try:
            record = parse_record(content, kind, lenient)
        except ValueError as error:
            assert 0 < len(str(error)) < 1000
            return
        # What is read can be written, and is then the same.
        for text in (record_text(record), record_line(record)):
            assert parse_record(text.encode("utf-8", "backslashreplace"), kind, True) == record

    feed()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    "content",
    [b"", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5000, b"\xff", b"\xef\xbb\xbf", b"NaN"],
)
def test_hostile_documents_are_refused(kind: type[Record], content: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_record(content, kind)
