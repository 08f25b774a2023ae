"""The endpoints of the server against the pipelines, and what it answers to requests that it cannot serve."""

import json
import logging
import re
import socket
import threading
import time

import numpy as np
import pytest

import deberta_jax
from deberta_jax import InputError
from deberta_jax.serving.options import TOKEN_VARIABLE
from tests.made import TINY, make_tokenizer, rows, saved_model
from tests.serving.served import MAX_LENGTH, options, running

TEXTS = [" ".join(text.split()[:3]) for text, _ in rows(6, seed=5)]


def pipe(task, models, name):
    return deberta_jax.pipeline(task, models[name], max_length=MAX_LENGTH)


def assert_same(found, expected):
    """The same strings and structure, and numbers that differ by rounding."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=1e-5)
    else:
        assert found == expected


def test_predict_answers_as_the_pipeline(client, models):
    expected = pipe("text-classification", models, "classifier")
    assert_same(client.post("/classifier/predict", inputs=TEXTS[0]).body, expected(TEXTS[0], top_k=None))
    pair = {"text": TEXTS[0], "text_pair": TEXTS[1]}
    assert_same(client.post("/classifier/predict", inputs=TEXTS[:2]).body, expected(pair, top_k=None))
    batch = [[TEXTS[2]], [TEXTS[0], TEXTS[1]], [TEXTS[3]]]
    answers = expected([TEXTS[2], pair, TEXTS[3]], top_k=None)
    assert_same(client.post("/classifier/predict", inputs=batch).body, answers)
    raw = client.post("/classifier/predict", inputs=TEXTS[0], raw_scores=True).body
    assert_same(raw, expected(TEXTS[0], top_k=None, function_to_apply="none"))


def test_rerank_orders_as_the_cross_encoder(client, models):
    ranker = deberta_jax.CrossEncoder(models["ranker"], max_length=MAX_LENGTH)
    ranked = client.post("/ranker/rerank", query=TEXTS[0], texts=TEXTS[1:], return_text=True).body
    expected = ranker.rank(TEXTS[0], TEXTS[1:], return_documents=True)
    named = [{"index": one["corpus_id"], "score": one["score"], "text": one["text"]} for one in expected]
    assert_same(ranked, named)
    raw = client.post("/ranker/rerank", query=TEXTS[0], texts=TEXTS[1:], raw_scores=True).body
    logits = ranker.predict([(TEXTS[0], text) for text in TEXTS[1:]], activation_fn=lambda x: x)
    np.testing.assert_allclose([one["score"] for one in raw], sorted(logits, reverse=True), atol=1e-5)


@pytest.mark.slow
def test_zero_shot_ner_and_qa_answer_as_the_pipelines(client, models):
    labels = {"candidate_labels": ["ban", "kost"], "multi_label": True, "hypothesis_template": "mur {}"}
    expected = pipe("zero-shot-classification", models, "nli")(TEXTS[:2], **labels)
    assert_same(client.post("/nli/zero-shot", inputs=TEXTS[:2], **labels).body, expected)
    for strategy in ("none", "simple", "average"):
        expected = pipe("ner", models, "tagger")(TEXTS[0], aggregation_strategy=strategy)
        assert_same(client.post("/tagger/ner", inputs=TEXTS[0], aggregation_strategy=strategy).body, expected)
    question = {"question": "ban kost", "context": " ".join(TEXTS)}
    reader = pipe("question-answering", models, "reader")
    assert_same(client.post("/reader/qa", inputs=question, top_k=3).body, reader(question, top_k=3))
    assert_same(client.post("/reader/qa", inputs=[question]).body, [reader(question)])


def test_fill_mask_answers_as_the_pipeline(client, models):
    filler = pipe("fill-mask", models, "masked")
    texts = ["ban [MASK] kost", "[MASK] mur [MASK] ban [MASK]"]
    assert_same(client.post("/masked/fill-mask", inputs=texts[0]).body, filler(texts[0]))
    assert_same(client.post("/masked/fill-mask", inputs=texts, top_k=7).body, filler(texts, top_k=7))
    targets = ["ban", "kost", "mur"]
    found = client.post("/masked/fill-mask", inputs=texts[1], targets=targets, top_k=2).body
    assert_same(found, filler(texts[1], targets=targets, top_k=2))


def test_embed_and_tokenize(client, models):
    embedder = deberta_jax.Embedder(models["encoder"], normalize=True, max_length=MAX_LENGTH)
    np.testing.assert_allclose(client.post("/encoder/embed", inputs=TEXTS).body, embedder.encode(TEXTS), atol=1e-5)
    plain = deberta_jax.Embedder(models["encoder"], max_length=MAX_LENGTH).encode([TEXTS[0]])
    np.testing.assert_allclose(client.post("/encoder/embed", inputs=TEXTS[0], normalize=False).body, plain, atol=1e-5)
    (tokens,) = client.post("/encoder/tokenize", inputs=TEXTS[0]).body
    assert [token["id"] for token in tokens] == embedder.tokenizer([TEXTS[0]]).input_ids[0].tolist()
    assert [token["special"] for token in tokens] == [True, *[False] * (len(tokens) - 2), True]
    assert tokens[0] == {"id": embedder.tokenizer.cls_id, "text": "[CLS]", "special": True, "start": None, "stop": None}
    assert all(TEXTS[0][token["start"] : token["stop"]] == token["text"] for token in tokens[1:-1])


def test_nothing_is_compiled_after_the_server_is_ready(client):
    # Other tests of this process compile too.
    before = client.metric("deberta_jax_compilations_after_ready_total")
    for inputs in (TEXTS[0], [[text] for text in TEXTS], [[text[:5]] for text in TEXTS * 5]):
        assert client.post("/classifier/predict", inputs=inputs).status == 200
    for masks in (1, 2, 5):
        fields = {"inputs": "ban [MASK] " * masks, "top_k": masks, "targets": ["ban", "kost"][:masks]}
        assert client.post("/masked/fill-mask", **fields).status == 200
    assert client.metric("deberta_jax_compilations_total") > 0
    assert client.metric("deberta_jax_compilations_after_ready_total") == before


@pytest.mark.parametrize(
    ("body", "status", "kind", "message"),
    [
        (b"{", 400, "Validation", "not readable as JSON"),
        (b"", 400, "Validation", "not readable as JSON"),
        (b"\xff\xfe", 400, "Validation", "not UTF-8"),
        (b'{"inputs": ' + b"[" * 1000 + b"]" * 1000 + b"}", 400, "Validation", "nested"),
        (b"[" * 200_000, 400, "Validation", "nested"),
        (b"3", 422, "Validation", "send a JSON object"),
        (b"{}", 422, "Validation", "'inputs' is missing"),
        (b'{"inputs": NaN}', 422, "Validation", "inputs: is nan"),
        (b'{"inputs": 3}', 422, "Validation", "inputs: is 3"),
        (b'{"inputs": null}', 422, "Validation", "inputs: is None"),
        (b'{"inputs": [["a", "b", "c"]]}', 422, "Validation", "inputs\\[0\\]"),
        (b'{"inputs": "a", "truncate": "yes"}', 422, "Validation", "truncate: is 'yes'"),
        (b'{"inputs": "a", "raw_score": true}', 422, "Validation", "did you mean 'raw_scores'"),
        (b'{"inputs": "\\ud800"}', 422, "Validation", "no valid Unicode"),
        (b'{"inputs": []}', 400, "Empty", "inputs: is empty"),
        (json.dumps({"inputs": [["a"]] * 129}).encode(), 413, "Validation", "129 items; the most is 128"),
        (json.dumps({"inputs": [["a"]] * 100_000}).encode(), 413, "Validation", "100000 items"),
        (json.dumps({"inputs": "ban " * 30_000}).encode(), 413, "Validation", "120000 characters"),
        (json.dumps({"inputs": "ban " * 60}).encode(), 413, "Validation", f"may have {MAX_LENGTH} tokens"),
        (b" " * 2_000_001, 413, "Validation", "more than 2000000 bytes"),
        (b" " * 10_000_000, 413, "Validation", "more than 2000000 bytes"),
    ],
)
def test_what_cannot_be_answered_has_the_status_and_the_body_of_the_contract(client, body, status, kind, message):
    reply = client.raw("/classifier/predict", body)
    assert (reply.status, reply.body["error_type"]) == (status, kind)
    assert reply.body.keys() == {"error", "error_type"}
    assert re.search(message, reply.body["error"])
    assert client.post("/classifier/predict", inputs="ban").status == 200, "the next request is served"


def test_long_texts_are_cut_where_the_request_says_so(client, models):
    text = "ban kost " * 30
    found = client.post("/classifier/predict", inputs=text, truncate=True).body
    assert_same(found, pipe("text-classification", models, "classifier")(text, top_k=None))
    assert client.post("/masked/fill-mask", inputs="[MASK] " + text).status == 413
    assert client.post("/masked/fill-mask", inputs="[MASK] " + text, truncate=True).status == 200
    assert client.post("/tagger/ner", inputs=text).status == 413
    assert client.post("/tagger/ner", inputs=text, stride=4).status == 200


def test_mistakes_that_a_pipeline_finds_are_the_clients(client):
    assert client.post("/masked/fill-mask", inputs="no mask").status == 422
    reply = client.post("/nli/zero-shot", inputs="a", candidate_labels=["b"], hypothesis_template="no place")
    assert reply.status == 422
    assert "hypothesis_template" in reply.body["error"]
    assert client.post("/tagger/ner", inputs="a", stride=100).status == 422


def test_other_addresses_methods_and_types(client):
    assert client.get("/nothing").status == 404
    assert client.get("/../../etc/passwd").status == 404
    assert client.get("/%2e%2e/etc/passwd").body["error_type"] == "Validation"
    assert client.get("/classifier/predict").status == 405
    assert client.request("POST", "/classifier/predict", b'{"inputs": "a"}', Content_Type="text/plain").status == 415
    assert client.post("/classifier/embed", inputs="a").status == 404, "a classifier has no embeddings here"


def test_the_server_describes_itself(client, models):
    described = client.get("/openapi.json").body
    assert set(described["paths"]["/classifier/predict"]["post"]["responses"]) >= {"200", "413", "422", "424", "429"}
    page = client.get("/docs")
    assert "/masked/fill-mask" in page.body
    assert "default-src 'none'" in page.headers["content-security-policy"]
    info = client.get("/classifier/info").body
    assert info["model_id"] == str(models["classifier"])
    assert info["model_type"]["classifier"]["id2label"] == {"0": "pos", "1": "neg", "2": "other"}
    assert info["max_input_length"] == MAX_LENGTH
    assert client.get("/encoder/info").body["model_type"] == {"embedding": {"pooling": "mean"}}
    assert [model["name"] for model in client.get("/models").body] == list(models)
    assert "access-control-allow-origin" not in client.get("/models").headers
    assert client.request("OPTIONS", "/classifier/predict", Origin="http://example.org").status == 405


def test_a_client_that_goes_away_frees_its_place(served):
    client, server = served
    (model,) = (model for model in server.service.models if model.name == "classifier")
    before = client.metric("deberta_jax_requests_abandoned_total")
    entered, release = threading.Event(), threading.Event()
    forward = model.batcher._program.forward
    held = lambda params, batch: (entered.set(), release.wait(60), forward(params, batch))[2]
    model.batcher._program = model.batcher._program._replace(forward=held)
    try:
        first = threading.Thread(target=client.post, args=("/classifier/predict",), kwargs={"inputs": "ban"})
        first.start()
        assert entered.wait(30)
        body = json.dumps({"inputs": "ban kost"}).encode()
        with socket.create_connection(("127.0.0.1", client.port)) as gone:
            head = "POST /classifier/predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            gone.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            end = time.monotonic() + 10
            while not client.metric("deberta_jax_queue_tokens") and time.monotonic() < end:
                time.sleep(0.05)
            assert client.metric("deberta_jax_queue_tokens") > 0
        end = time.monotonic() + 10
        while client.metric("deberta_jax_queue_tokens") and time.monotonic() < end:
            time.sleep(0.05)
        assert client.metric("deberta_jax_queue_tokens") == 0
        assert client.metric("deberta_jax_requests_abandoned_total") == before + 1
    finally:
        model.batcher._program = model.batcher._program._replace(forward=forward)
        release.set()
    first.join()
    assert client.metric("deberta_jax_requests_in_flight") == 0


def test_one_model_has_the_plain_addresses_a_token_and_limits(models, monkeypatch, caplog):
    monkeypatch.setenv(TOKEN_VARIABLE, "secret")
    given = options(
        models["classifier"], max_requests=1, timeout=3.0, cors_origins=("http://example.org",), log_requests=True
    )
    with caplog.at_level(logging.INFO), running(given) as (client, server):
        refused = client.post("/predict", inputs="ban")
        assert (refused.status, refused.body["error_type"]) == (401, "Unauthorized")
        assert refused.headers["www-authenticate"] == "Bearer"
        assert client.get("/models").status == client.get("/info").status == 401
        assert {client.get(path).status for path in ("/health", "/metrics", "/", "/docs")} == {200}
        client.token = "wrong"
        assert client.post("/predict", inputs="ban").status == 401
        client.token = "secret"
        reply = client.post("/predict", inputs="ban")
        assert reply.status == 200
        assert int(reply.headers["x-compute-tokens"]) == 3
        cross = client.request("GET", "/info", Origin="http://example.org")
        assert cross.headers["access-control-allow-origin"] == "http://example.org"

        entered, release = threading.Event(), threading.Event()
        batcher = server.service.models[0].batcher
        forward = batcher._program.forward
        held = lambda params, batch: (entered.set(), release.wait(60), forward(params, batch))[2]
        batcher._program = batcher._program._replace(forward=held)
        replies = []
        first = threading.Thread(target=lambda: replies.append(client.post("/predict", inputs="ban")))
        first.start()
        assert entered.wait(30)
        full = client.post("/predict", inputs="kost")
        assert (full.status, full.body["error_type"], full.headers["retry-after"]) == (429, "Overloaded", "1")
        first.join()
        assert (replies[0].status, replies[0].body["error_type"]) == (503, "Overloaded")
        batcher._program = batcher._program._replace(forward=forward)
        release.set()
        assert client.post("/predict", inputs="ban").status == 200
    logged = caplog.text
    assert "POST /predict 200" in logged
    assert not any(text in logged for text in ("secret", "wrong", "ban", "kost"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"port": 70000}, "--port 70000"),
        ({"max_rows": 0}, "--max-rows 0: must be at least 1"),
        ({"task": ("embedding", "embedding", "embedding")}, "3 tasks for 1 models"),
        ({"host": "256.1.1.1"}, "cannot listen there"),
        ({"token_file": "/nonexistent/token"}, "/nonexistent/token"),
        ({"task": ("question-answering",)}, "has no head qa_outputs"),
    ],
)
def test_bad_options_are_one_line(models, given, message):
    with pytest.raises(InputError, match=message):
        running(options(models["classifier"], **given)).__enter__()


def test_models_have_one_name_each(models):
    with pytest.raises(InputError, match="two models have the name 'classifier'"):
        options(models["classifier"], models["classifier"]).check()
    named = options(models["classifier"], f"other={models['classifier']}").requested()
    assert [(one.name, one.source) for one in named] == [
        ("classifier", str(models["classifier"])),
        ("other", str(models["classifier"])),
    ]


def test_a_discriminator_is_no_embedder(tmp_path):
    """transformers has no class for it, so config.json names the encoder's."""
    model = deberta_jax.DebertaForReplacedTokenDetection(TINY)
    directory = saved_model(tmp_path / "discriminator", model, make_tokenizer(tmp_path / "tokenizer"), seed=3)
    with pytest.raises(InputError, match="models with the head replaced-token-detection are not served"):
        running(options(directory)).__enter__()
