"""The ONNX graph in ONNX Runtime gives what the model gives: all generations and heads, any batch and length."""

import itertools
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest

from deberta_jax.config import DebertaConfig
from deberta_jax.export.onnx.building import OnnxModel, build
from deberta_jax.export.onnx.graph import Graph
from deberta_jax.export.onnx.modules import ACTIVATIONS, activation
from deberta_jax.export.onnx.relative_position import last_distance
from deberta_jax.models import HEADS
from deberta_jax.ops import activations
from deberta_jax.ops.attention.relative_position import make_relative_index
from tests.cases import BASE, Arrays, Case, apply, draw_params

LENGTHS, ROWS, LONGEST = (1, 7, 64, 300), (1, 3), 300
TOLERANCE = {"rtol": 0, "atol": 1e-5}
# The original masked-LM head reads the enhanced mask decoder, which has absolute positions for the longest text.
DECODER = {"legacy": False, "mask_decoder": True, "max_position_embeddings": LONGEST}


def grid() -> list:
    cases = [Case(f"onnx-{base}-{head}", base, head) for base, head in itertools.product(BASE, HEADS)]
    cases += [Case(f"onnx-{base}-mask-decoder", base, "masked-lm", DECODER) for base in BASE]
    cases.append(Case("onnx-v1-talking-heads", "v1", options={"talking_head": True}))
    types = {"type_vocab_size": 2, "position_biased_input": True, "embedding_size": 24, "max_position_embeddings": 300}
    cases.append(Case("onnx-v2-types", "v2", options=types))
    quick = ("onnx-v1-encoder", "onnx-xl-question-answering", "onnx-v3-multiple-choice", "onnx-v3-mask-decoder")
    quick = (*quick, "onnx-v3-replaced-token-detection")
    return [pytest.param(case, marks=() if case.name in quick else pytest.mark.long, id=case.name) for case in cases]


def opened(model: OnnxModel, tmp_path: Path) -> onnxruntime.InferenceSession:
    file = tmp_path / "model.onnx"
    model.write(file)
    onnx.checker.check_model(str(file), full_check=True)
    return onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])


def texts(case: Case) -> Arrays:
    """Three texts of each length, the longest first, and one without a token; for choices each row has three texts."""
    random, c = np.random.default_rng(0), case.config
    lengths = np.repeat([*sorted(LENGTHS, reverse=True), 0], 3)
    shape = (len(lengths), 3, LONGEST) if case.head == "multiple-choice" else (len(lengths), LONGEST)
    places = np.arange(LONGEST)
    real = np.broadcast_to(places < lengths.reshape(-1, *[1] * (len(shape) - 1)), shape)
    ids = np.where(real, random.integers(1, c.vocab_size, shape), c.pad_token_id)
    batch = {"input_ids": ids, "attention_mask": real}
    if c.type_vocab_size:
        batch["token_type_ids"] = random.integers(0, c.type_vocab_size, shape)
    return {name: array.astype(np.int64) for name, array in batch.items()}


@pytest.mark.slow
@pytest.mark.parametrize("case", grid())
def test_outputs_equal_the_model(case: Case, tmp_path):
    """One file for all: texts alone and in batches, padded on either side, and a row of nothing but padding."""
    model = case.model()
    params = draw_params(model)
    session = opened(build(model, params), tmp_path)
    names = [output.name for output in session.get_outputs()]
    right = texts(case)
    left = {name: array[..., ::-1].copy() for name, array in right.items()}
    outputs = {}
    for side, batch in (("right", right), ("left", left)):
        expected = apply(model, params, {name: array.astype(np.int32) for name, array in batch.items()})
        outputs = {name: getattr(expected, name) for name in names} if side == "right" else outputs
        for name, found in zip(names, session.run(names, batch), strict=True):
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, getattr(expected, name), **TOLERANCE, err_msg=f"{name} {side}")
    for start, length in enumerate(sorted(LENGTHS, reverse=True)):
        for rows in ROWS:
            chosen = slice(3 * start, 3 * start + rows)
            alone = session.run(names, {name: array[chosen, ..., :length] for name, array in right.items()})
            for name, found in zip(names, alone, strict=True):
                expected = outputs[name][chosen]
                expected = expected[:, :length] if HEADS[case.head].per_token else expected
                np.testing.assert_allclose(found, expected, **TOLERANCE, err_msg=f"{name} {rows}x{length}")


def test_inputs_and_outputs_have_the_names_that_optimum_reads(tmp_path):
    ids = ["input_ids", "attention_mask"]
    tokens = ["batch_size", "sequence_length"]
    logits = {"logits": [*tokens, 96]}
    spans = {"start_logits": tokens, "end_logits": tokens}
    for head, options, inputs, outputs in (
        ("masked-lm", {}, ids, logits),
        ("encoder", {"type_vocab_size": 2}, [*ids, "token_type_ids"], {"last_hidden_state": [*tokens, 32]}),
        ("question-answering", {}, ids, spans),
        ("sequence-classification", {}, ids, {"logits": ["batch_size", 3]}),
    ):
        model = Case(head, "v3", head, options).model()
        session = opened(build(model, draw_params(model)), tmp_path)
        assert {value.name: value.shape for value in session.get_inputs()} == dict.fromkeys(inputs, tokens)
        assert {value.name: value.shape for value in session.get_outputs()} == outputs


def test_layers_with_terms_of_their_own(tmp_path):
    """As test_layer_terms compares with the definition: each layer has its own terms and its own scale."""
    case = Case("onnx-layer-terms", "v3", options={"num_hidden_layers": 4}, length=20)
    model = case.model()
    model = model.clone(config=model.config.replace(layer_pos_att_type=(("c2p",), (), ("p2c", "c2p"), ("p2c",))))
    params, batch = draw_params(model), texts(case)
    session = opened(build(model, params), tmp_path)
    expected = apply(model, params, {name: array.astype(np.int32) for name, array in batch.items()})
    (found,) = session.run(None, batch)
    np.testing.assert_allclose(found, expected.last_hidden_state, **TOLERANCE)


@pytest.mark.parametrize("buckets", [-1, 2, 3, 5, 8, 9])
@pytest.mark.parametrize("long_positions", ["clamp", "hf"])
@pytest.mark.parametrize("most", [7, 20])
def test_the_row_of_a_distance_does_not_change_beyond_the_last_one(buckets, long_positions, most):
    config = DebertaConfig(
        relative_attention=True, position_buckets=buckets, long_positions=long_positions, max_relative_positions=most
    )
    last, farthest = last_distance(config), 2000
    options = {"buckets": buckets, "max_distance": most, "clamp": config.clamps_distances}
    whole = make_relative_index(farthest + 1, config.relative_span, **options)
    held = make_relative_index(last + 1, config.relative_span, **options)
    assert last < 300
    np.testing.assert_array_equal(whole, held[np.clip(np.arange(-farthest, farthest + 1), -last, last) + last])


def test_every_activation(tmp_path):
    assert ACTIVATIONS.keys() == activations.ACTIVATIONS.keys()
    graph, names = Graph(), list(ACTIVATIONS)
    for name in names:
        value = activation(graph, name, "x")
        graph.nodes.append(onnx.helper.make_node("Identity", [value], [name]))
    kind = onnx.TensorProto.FLOAT
    proto = graph.model({}, dict.fromkeys(names, ("size",)))
    proto.graph.input.append(onnx.helper.make_tensor_value_info("x", kind, ["size"]))
    session = opened(OnnxModel(proto, graph.initializers), tmp_path)
    x = np.linspace(-8, 8, 401, dtype=np.float32)
    for name, found in zip(names, session.run(names, {"x": x}), strict=True):
        expected = activations.ACTIVATIONS[name](jnp.asarray(x))
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=2e-6, err_msg=name)


def test_weights_in_a_second_file_are_the_same(tmp_path):
    case = Case("onnx-external", "v3", "masked-lm")
    built = build(case.model(), draw_params(case.model()))
    batch = texts(case)
    (expected,) = opened(built, tmp_path).run(None, batch)
    file = tmp_path / "large" / "model.onnx"
    file.parent.mkdir()
    built.write(file, largest=20_000)
    onnx.checker.check_model(str(file), full_check=True)
    data = file.with_name("model.onnx_data")
    assert sorted(path.name for path in file.parent.iterdir()) == ["model.onnx", "model.onnx_data"]
    assert data.stat().st_size > 0.9 * built.nbytes
    assert file.stat().st_size < 60_000
    (found,) = onnxruntime.InferenceSession(str(file)).run(None, batch)
    np.testing.assert_array_equal(found, expected)


def test_half_precision_keeps_the_norms_and_the_softmax_in_float32(tmp_path):
    case = Case("onnx-half", "xl", "sequence-classification")
    model, params, batch = case.model(), draw_params(case.model()), texts(case)
    built = build(model, params, np.float16)
    session = opened(built, tmp_path)
    kinds = {name: array.dtype.name for name, array in built.initializers.items() if array.dtype.kind == "f"}
    assert {kind for name, kind in kinds.items() if "LayerNorm" not in name and "constant" not in name} == {"float16"}
    assert {kind for name, kind in kinds.items() if "LayerNorm" in name} == {"float32"}
    proto = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "model.onnx"), strict_mode=True)
    types = {value.name: value.type.tensor_type.elem_type for value in proto.graph.value_info}
    wide = [node for node in proto.graph.node if node.op_type in ("Softmax", "LayerNormalization")]
    assert {types[node.output[0]] for node in wide} == {onnx.TensorProto.FLOAT}
    products = {types[node.output[0]] for node in proto.graph.node if node.op_type in ("MatMul", "Gemm", "Conv")}
    assert products == {onnx.TensorProto.FLOAT16}
    rows = slice(0, 12)  # a row without a token has logits of no meaning
    expected = apply(model, params, {name: array[rows].astype(np.int32) for name, array in batch.items()}).logits
    (found,) = session.run(None, {name: array[rows] for name, array in batch.items()})
    assert 0 < np.abs(found - expected).max() < 0.02


def test_int8_embeddings_have_a_scale_for_each_row(tmp_path):
    """A row with large numbers leaves the others as exact as they were."""
    case = Case("onnx-int8", "v3")
    model, params = case.model(), draw_params(case.model())
    words = np.array(params["embeddings"]["word_embeddings"]["embedding"])
    words[5] *= 1000
    words[6] = 0
    table = {"embedding": words}
    params = params | {"embeddings": params["embeddings"] | {"word_embeddings": table}}
    built = build(model, params, int8_embeddings=True)
    stored, scale = built.initializers["word_embeddings"], built.initializers["word_embeddings.scale"]
    assert stored.dtype == np.int8
    error = np.abs(stored * scale - words).max(axis=1)
    assert (error <= np.abs(words).max(axis=1) / 254 * 1.0001).all()
    assert error[6] == 0
    batch = texts(case)
    params["embeddings"]["word_embeddings"] = {"embedding": stored * scale}
    expected = apply(model, params, {name: array.astype(np.int32) for name, array in batch.items()})
    (found,) = opened(built, tmp_path).run(None, batch)
    np.testing.assert_allclose(found, expected.last_hidden_state, **TOLERANCE)
