"""Names of synthetic sets: every part is read, and the name is what the parts make."""

import pytest

from nafld_utils.params import SetName

NAMES = [
    ("semantic", SetName("semantic")),
    ("gan", SetName("gan")),
    ("class_balanced", SetName("class", "oversample")),
    ("null_semantic", SetName("semantic", kind="synthetic_null")),
    ("untrained_class", SetName("class", kind="synthetic_untrained")),
    ("gaussian_semantic_balanced", SetName("semantic", "oversample", "synthetic_gaussian")),
]


@pytest.mark.parametrize(("name", "parts"), NAMES)
def test_a_name_is_taken_apart_and_put_together(name, parts):
    assert SetName.of(name) == parts
    assert str(parts) == name


def test_gaussian_latents_have_no_class_and_only_oversampled_models_are_balanced():
    assert [name for name, _ in NAMES if not SetName.of(name).has_labels] == ["gaussian_semantic_balanced"]
    assert [name for name, _ in NAMES if SetName.of(name).is_balanced] == [
        "class_balanced",
        "gaussian_semantic_balanced",
    ]
