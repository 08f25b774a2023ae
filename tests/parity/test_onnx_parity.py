"""The exported ONNX graph in ONNX Runtime beside transformers, with the same weights."""

import numpy as np
import onnxruntime
import pytest

from deberta_jax.export.onnx.building import build
from tests.cases import Case, real_part, to_tree
from tests.parity import hugging_face
from tests.parity.matrix import CASES

pytestmark = [pytest.mark.parity, pytest.mark.slow]

# The graph takes token ids, attention mask and token types; positions are those of the tokens.
_CASES = [case for case in CASES if not {"inputs_embeds", "position_ids"} & set(case.inputs)]


@pytest.mark.parametrize("case", _CASES, ids=lambda case: case.name)
def test_the_graph_equals_transformers(case: Case, tmp_path):
    torch_model, state = hugging_face.build(case)
    batch = case.batch()
    theirs, _ = hugging_face.run(case, torch_model, batch)
    build(case.model(), to_tree(case.config, state)).write(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    inputs = {value.name: batch[value.name].astype(np.int64) for value in session.get_inputs()}
    names = [value.name for value in session.get_outputs()]
    for name, found in zip(names, session.run(names, inputs), strict=True):
        expected = theirs["hidden_states"][-1] if name == "last_hidden_state" else theirs[name]
        found, expected = (real_part(case, name, a, batch) for a in (found, expected))
        assert expected.size
        np.testing.assert_allclose(found, expected.reshape(found.shape), rtol=0, atol=1e-5)
