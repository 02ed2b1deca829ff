import pytest

from tagseg.settings.arguments import refuse_other, refuse_unknown


@pytest.mark.parametrize(
    ("name", "value", "answer"),
    [
        (
            "epochs",
            3,
            'setting, train.epochs or segment.epochs: settings=tagseg.Settings.from_dict({"train": {"epochs"',
        ),
        ("seed", 3, 'It is a setting: settings=tagseg.Settings.from_dict({"seed": 3})'),
        ("quality", "fast", "Give it as settings=tagseg.preset('fast')"),
        ("setings", None, "Did you mean settings? It has data, out, settings, force, track, processes"),
        ("epoch", 3, "Did you mean the setting segment.epochs?"),
        ("zzz", 3, "fit() has no argument zzz. It has data, out"),
    ],
)
def test_an_unknown_argument_is_answered_with_the_right_name(name: str, value: object, answer: str) -> None:
    with pytest.raises(TypeError) as raised:
        refuse_unknown({name: value})
    assert answer in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "answer"),
    [
        ("fast", r"got the text 'fast': settings=tagseg\.preset\('fast'\)"),
        ({"seed": 1}, r"got a dict: settings=tagseg\.Settings\.from_dict"),
        (3, "settings must be tagseg.Settings, got int"),
    ],
)
def test_other_settings_are_answered_with_what_they_must_be(settings: object, answer: str) -> None:
    with pytest.raises(TypeError, match=answer):
        refuse_other(settings)
