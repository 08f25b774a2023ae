"""Tokenised examples: what is cut and counted, and ids that the model does not have."""

import numpy as np
import pytest

from deberta_jax.data.features import check_vocabulary, make_features
from deberta_jax.errors import InputError
from tests.made import make_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("features"))


def test_examples_are_what_the_tokenizer_says_and_cuts_are_counted(tokenizer):
    texts = ["ban", "ban ban ban ban ban ban", "ban ban ban ban", ""]
    pairs = ["tell", "tell tell", "tell", "tell"]
    for second in (None, pairs):
        whole = tokenizer.encode_ragged(texts, second)
        longest = max(len(ids) for ids, _ in whole)
        for limit in (longest + 1, longest, longest - 1, 5):
            features = make_features(tokenizer, texts, second, max_length=limit)
            assert features.cut == sum(len(ids) > limit for ids, _ in whole)
            assert features.lengths.max() == min(limit, longest)
            assert len(features) == 4
            for i, (ids, types) in enumerate(tokenizer.encode_ragged(texts, second, max_length=limit)):
                part = slice(features.starts[i], features.starts[i + 1])
                np.testing.assert_array_equal(features.ids[part], ids)
                np.testing.assert_array_equal(features.types[part], types)


def test_an_id_without_a_row_is_refused(tokenizer):
    features = make_features(tokenizer, ["ban [MASK]"], None, max_length=16)
    check_vocabulary(features, tokenizer.vocab_size, "f.csv")
    with pytest.raises(InputError, match=r"f.csv: token id \d+ is outside the model's vocabulary of 100"):
        check_vocabulary(features, 100, "f.csv")
