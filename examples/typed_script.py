"""Load, tokenize, run, ask a pipeline and save: a type checker knows the class of every value, with no annotation."""

import tempfile

import jax
import numpy as np

import deberta_jax
from deberta_jax import PRESETS, DebertaForQuestionAnswering, from_pretrained, init_params, pipeline

CONTEXT = "The library opens at nine. The garden is open all day."


def make_model(directory: str) -> None:
    """Writes a small model with random weights, in the place of one from the hub."""
    tokenizer = deberta_jax.train_tokenizer([CONTEXT, "When does it open?"], 356, f"{directory}-tokenizer")
    tiny = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = PRESETS["deberta-v3-base"].replace(vocab_size=tokenizer.vocab_size, **tiny)
    model = DebertaForQuestionAnswering(config)
    deberta_jax.save_pretrained(directory, model, init_params(model, jax.random.key(0)), tokenizer=tokenizer)


def main(directory: str) -> None:
    make_model(directory)
    model, params = from_pretrained(directory, head="question-answering")
    tokenizer = deberta_jax.load_tokenizer(directory)
    encoding = tokenizer("When does it open?", CONTEXT, truncation="only_second", max_length=64, padding=True)
    out = model(params, **encoding)
    first, last = int(out.start_logits[0].argmax()), int(out.end_logits[0].argmax())
    ids: list[int] = encoding.input_ids[0].tolist()
    print(f"tokens {first} to {last} of {len(ids)}: {tokenizer.decode(ids[first : last + 1])!r}")

    answer = pipeline("question-answering", directory)(question="When does it open?", context=CONTEXT)
    print(f"pipeline: {answer['answer']!r}, score {answer['score']:.3f}")
    assert CONTEXT[answer["start"] : answer["end"]] == answer["answer"]

    deberta_jax.save_pretrained(f"{directory}-copy", model, params, tokenizer=tokenizer)
    again, loaded = from_pretrained(f"{directory}-copy", head="question-answering")
    difference = np.abs(again(loaded, **encoding).end_logits - out.end_logits).max()
    print(f"largest difference after saving: {difference:.1f}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(f"{temporary}/model")
