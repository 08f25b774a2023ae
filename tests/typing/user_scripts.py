"""Uses the public names as users do. A type checker reads this file (``make types``); nothing runs it.

``assert_type`` fails where a type is Any, and a comment that ignores an error fails where there is none.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, assert_type

import jax
import jax.numpy as jnp
import numpy as np
import optax

import deberta_jax
from deberta_jax import PRESETS, DebertaConfig, from_pretrained, losses, pipeline
from deberta_jax.inference import (
    ChoiceAnswer,
    EntityAnswer,
    FilledMask,
    MaskFiller,
    QuestionAnswer,
    RankedDocument,
    TextAnswer,
    TextClassifier,
    TokenAnswer,
    TokenClassifier,
    ZeroShotAnswer,
)
from deberta_jax.models import EncoderOutput, HeadOutput, Model, ProjectionInputs, SpanOutput


def every_head(directory: Path, ids: np.ndarray) -> None:
    encoder, params = from_pretrained(directory)
    assert_type(encoder, deberta_jax.DebertaEncoder)
    assert_type(params, dict[str, Any])
    assert_type(encoder(params, ids), EncoderOutput)
    assert_type(encoder(params, ids).last_hidden_state, jax.Array)
    lm, params = from_pretrained(directory, head="masked-lm", dtype=jnp.bfloat16)
    assert_type(lm, deberta_jax.DebertaForMaskedLM)
    arrays = {"input_ids": ids, "attention_mask": ids}
    assert_type(lm(params, **arrays), HeadOutput)
    assert_type(lm(params, ids, positions=np.zeros((1, 1), np.int32)), HeadOutput)
    assert_type(lm(params, ids, return_projection_inputs=True), ProjectionInputs)
    texts, params = from_pretrained(directory, "sequence-classification", num_labels=3, new_head=0)
    assert_type(texts, deberta_jax.DebertaForSequenceClassification)
    assert_type(texts(params, ids).logits, jax.Array)
    tokens, params = from_pretrained(directory, "token-classification", id2label=["O", "B"], new_head=jax.random.key(0))
    assert_type(tokens, deberta_jax.DebertaForTokenClassification)
    spans, params = from_pretrained(str(directory), head="question-answering")
    assert_type(spans, deberta_jax.DebertaForQuestionAnswering)
    assert_type(spans(params, ids), SpanOutput)
    assert_type(spans(params, ids).start_logits, jax.Array)
    choices, params = from_pretrained(directory, head="multiple-choice")
    assert_type(choices, deberta_jax.DebertaForMultipleChoice)
    replaced, params = from_pretrained(directory, head="replaced-token-detection")
    assert_type(replaced, deberta_jax.DebertaForReplacedTokenDetection)
    name: str = "my-head"
    other, params = from_pretrained(directory, head=name)
    assert_type(other, Model[Any])


def outputs(config: DebertaConfig, text: str) -> None:
    model = deberta_jax.DebertaForTokenClassification(config, dtype=jnp.bfloat16)
    params = deberta_jax.init_params(model, jax.random.key(0))
    tokenizer = deberta_jax.load_tokenizer("directory")
    encoding = tokenizer([text, text], padding=True, truncation=True, max_length=8, return_tensors="np")
    out = model(params, **encoding, output_hidden_states=True, output_attentions=True)
    assert_type(out, HeadOutput)
    assert_type(out.hidden_states, tuple[jax.Array, ...] | None)
    assert_type(out.attentions, tuple[jax.Array, ...] | None)
    batch = {"input_ids": jnp.ones((2, 3), int), "attention_mask": jnp.ones((2, 3))}
    assert_type(model(params, **batch), HeadOutput)
    trained = model(params, **encoding, deterministic=False, rngs={"dropout": jax.random.key(1)})
    assert_type(trained.logits, jax.Array)
    assert_type(tokenizer.decode([1, 2]), str)


def classifiers(directory: str) -> None:
    classify = pipeline("text-classification", directory, max_length=64, device="cpu")
    assert_type(classify, TextClassifier)
    assert_type(classify("a text"), list[TextAnswer])
    assert_type(classify("a text")[0]["label"], str)
    assert_type(classify("a text", top_k=None), list[TextAnswer])
    assert_type(classify(["a", "b"]), list[TextAnswer])
    assert_type(classify(["a", "b"], top_k=2, function_to_apply="sigmoid"), list[list[TextAnswer]])
    assert_type(classify(("a text", "its pair"))["score"], float)
    assert_type(classify({"text": "a", "text_pair": "b"}), TextAnswer)
    assert_type(classify([{"text": "a", "text_pair": "b"}], truncation=True), list[TextAnswer])
    assert_type(classify(text for text in "ab"), Iterator[TextAnswer])
    assert_type(pipeline("sentiment-analysis", model=directory, top_k=None), TextClassifier)
    zero = pipeline("zero-shot-classification", model=directory)
    assert_type(zero("a text", ["a", "b"], multi_label=True), ZeroShotAnswer)
    assert_type(zero("a text", candidate_labels="a, b")["scores"], list[float])
    assert_type(zero(["a", "b"], candidate_labels=["c"]), list[ZeroShotAnswer])


def every_other_pipeline(directory: str) -> None:
    tag = pipeline("ner", directory, batch_size=8)
    assert_type(tag, TokenClassifier)
    assert_type(tag("a text"), list[TokenAnswer])
    assert_type(tag("a text", aggregation_strategy="simple"), list[EntityAnswer])
    assert_type(tag(["a text"], aggregation_strategy="first", stride=8), list[list[EntityAnswer]])
    answer = pipeline("question-answering", directory)
    assert_type(answer(question="who?", context="she"), QuestionAnswer)
    assert_type(answer(question="who?", context="she", top_k=2), list[QuestionAnswer])
    assert_type(answer({"question": "who?", "context": "she"}), QuestionAnswer)
    assert_type(answer([{"question": "who?", "context": "she"}] * 2)[0]["start"], int)
    choose = pipeline("multiple-choice", directory)
    assert_type(choose({"text": "a", "choices": ["b", "c"]}), ChoiceAnswer)
    fill = pipeline("fill-mask", directory)
    assert_type(fill, MaskFiller)
    assert_type(fill("a [MASK]", top_k=3), list[FilledMask])
    assert_type(fill(["a [MASK]", "[MASK]"], targets=["b"])[0][0]["token_str"], str)
    states = pipeline("feature-extraction", directory)
    assert_type(states("a text"), list[list[list[float]]])
    assert_type(states("a text", return_tensors=True), np.ndarray)


def rank(directory: Path) -> None:
    ranker = deberta_jax.CrossEncoder(directory, max_length=64, activation_fn=lambda logits: logits)
    assert_type(ranker.rank("a query", ["a", "b"], top_k=1, return_documents=True), list[RankedDocument])
    assert_type(ranker.rank("a query", ["a", "b"])[0]["corpus_id"], int)


def embed(directory: Path) -> None:
    assert_type(deberta_jax.encode(directory, ["a", "b"], pooling="cls", normalize=True), np.ndarray)
    assert_type(deberta_jax.Embedder(directory, pooling="max").encode("a text"), np.ndarray)


def loop(directory: str, batches: list[dict[str, np.ndarray]], output: str) -> None:
    model, params = from_pretrained(directory, head="sequence-classification")
    optimizer = optax.adamw(1e-5)
    state = optimizer.init(params)

    @jax.jit
    def step(params: dict[str, Any], state: optax.OptState, batch: dict[str, jax.Array], key: jax.Array):
        def loss(params: dict[str, Any]) -> jax.Array:
            out = model(params, batch["input_ids"], deterministic=False, rngs={"dropout": key})
            assert_type(out, HeadOutput)
            return losses.weighted_mean(*losses.cross_entropy(out.logits, batch["labels"]))

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    for i, batch in enumerate(batches):
        params, state, value = step(params, state, batch, jax.random.key(i))
        print(i, float(value))
    deberta_jax.save_pretrained(output, model, params, tokenizer=deberta_jax.load_tokenizer(directory))


def submodules() -> None:
    assert_type(PRESETS["deberta-v3-base"].replace(num_hidden_layers=3), DebertaConfig)
    assert_type(deberta_jax.sharding.make_mesh(), jax.sharding.Mesh)
    config = deberta_jax.training.Finetune(model="m", train="t.csv", output="o")
    assert_type(config, deberta_jax.training.Finetune)
    assert_type(deberta_jax.data.read_table("t.csv"), deberta_jax.data.Table)
    assert_type(deberta_jax.weights.verify("dir").passed, bool)


def mistakes(directory: str, ids: np.ndarray) -> None:
    spans, params = from_pretrained(directory, head="question-answering")
    print(spans(params, ids).logits)  # pyright: ignore
    print(spans(params, ids, attention_masks=ids))  # pyright: ignore
    print(spans(params, ids, attention_mask="ones"))  # pyright: ignore
    print(spans(directory, ids))  # pyright: ignore
    print(pipeline("question-answering", directory)({"question": "q", "context": "c"})["label"])  # pyright: ignore
    print(pipeline("ner", directory)("a text", aggregation_strategy="firsd"))  # pyright: ignore
    print(pipeline("text-classification", directory)(3))  # pyright: ignore
    print(deberta_jax.sharding.meshes)  # pyright: ignore
    print(deberta_jax.nothing)  # pyright: ignore
    print(from_pretrained(directory, dtypes=jnp.bfloat16))  # pyright: ignore
