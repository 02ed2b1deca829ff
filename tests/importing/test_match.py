import pytest

from tagseg.data.locate import spellings


@pytest.mark.parametrize(
    "name",
    [
        "dog/ä b.png",
        "dog\\ä b.png",
        "./dog/ä b.png",
        "dog/a\u0308 b.png",
        "dog/%C3%A4%20b.png",
        "/data/local-files/?d=dog/%C3%A4%20b.png",
        "http://localhost:8080/data/local-files/?x=1&d=dog%2F%C3%A4%20b.png",
        "https://host/bucket/dog/ä%20b.png?X-Amz-Signature=abc",
        "s3://bucket/dog/ä b.png",
        "dog/8af3c0de-ä b.png",
        "dog/ä b_png.rf.0123456789abcdef0123456789abcdef.jpg",
    ],
)
def test_the_name_in_the_data_set_is_among_the_spellings(name: str) -> None:
    assert any(spelling.endswith("dog/ä b.png") for spelling in spellings(name))


def test_the_name_as_it_is_comes_first() -> None:
    assert spellings("cafebabe-1%20a.png?b")[0] == "cafebabe-1%20a.png?b"
