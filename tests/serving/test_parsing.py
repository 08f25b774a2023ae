"""What requests may hold, by endpoint."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deberta_jax.serving.errors import ServingError
from deberta_jax.serving.parsing import FIELDS, TextLimits, read_fields, read_object

# The first example of all builds Hypothesis's tables of characters.
PATIENT = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
LIMITS = TextLimits(texts=4, characters=20)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


def read(endpoint, **fields):
    return read_fields(fields, FIELDS[endpoint], LIMITS)


def test_values_that_are_not_given_have_their_defaults():
    assert read("predict", inputs="a") == {"inputs": "a", "raw_scores": False, "truncate": False}
    assert read("embed", inputs=["a"])["normalize"] is True
    assert read("ner", inputs="a")["aggregation_strategy"] == "simple"


def test_pairs_and_batches_of_predict():
    assert read("predict", inputs=["a"])["inputs"] == "a"
    assert read("predict", inputs=["a", "b"])["inputs"] == ("a", "b")
    assert read("predict", inputs=[["a"], ["b", "c"]])["inputs"] == ["a", ("b", "c")]


def test_labels_may_be_one_text_with_commas():
    assert read("zero-shot", inputs="a", candidate_labels="b, c,")["candidate_labels"] == ["b", "c"]


@pytest.mark.parametrize(
    ("endpoint", "fields", "status"),
    [
        ("predict", {"inputs": ["a", "b", "c"]}, 422),
        ("predict", {"inputs": ["a", ["b"]]}, 422),
        ("predict", {"inputs": [["a"]] * 5}, 413),
        ("rerank", {"query": "a"}, 422),
        ("rerank", {"query": "a", "texts": "b"}, 422),
        ("rerank", {"query": "a", "texts": []}, 400),
        ("embed", {"inputs": "a" * 21}, 413),
        ("zero-shot", {"inputs": "a", "candidate_labels": ""}, 400),
        ("zero-shot", {"inputs": "a", "candidate_labels": [1]}, 422),
        ("zero-shot", {"inputs": "a", "candidate_labels": ["a"] * 101}, 413),
        ("ner", {"inputs": "a", "aggregation_strategy": "best"}, 422),
        ("qa", {"inputs": {"question": "a"}}, 422),
        ("qa", {"inputs": {"question": "a", "context": " "}}, 422),
        ("qa", {"inputs": {"question": "a", "context": "b"}, "top_k": 0}, 422),
        ("qa", {"inputs": {"question": "a", "context": "b"}, "top_k": True}, 422),
        ("fill-mask", {"inputs": "a", "top_k": 101}, 422),
        ("fill-mask", {"inputs": "a", "targets": []}, 400),
    ],
)
def test_other_values_are_refused(endpoint, fields, status):
    with pytest.raises(ServingError) as caught:
        read(endpoint, **fields)
    assert caught.value.status == status


def status_of(read, *arguments) -> int:
    """The status that a refusal has; 200 for what is read."""
    try:
        read(*arguments)
    except ServingError as error:
        return error.status
    return 200


@PATIENT
@given(st.sampled_from(sorted(FIELDS)), st.dictionaries(st.sampled_from(["inputs", "query", "texts", "top_k"]), JSON))
def test_any_json_is_read_or_refused(endpoint, fields):
    assert status_of(read_fields, fields, FIELDS[endpoint], LIMITS) in (200, 400, 413, 422)


@PATIENT
@given(st.binary(max_size=50))
def test_any_bytes_are_read_or_refused(body):
    assert status_of(read_object, body) in (200, 400, 422)
