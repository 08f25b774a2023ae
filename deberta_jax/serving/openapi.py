"""Describes the server's addresses: as an OpenAPI document, and as a page."""

import html
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from deberta_jax.serving.parsing import FIELDS, REQUIRED, TEXT, Field

_NUMBER, _INTEGER = {"type": "number"}, {"type": "integer"}


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def _list(items: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


_ENTITY = _object(
    entity_group=TEXT, entity=TEXT, index=_INTEGER, score=_NUMBER, word=TEXT, start=_INTEGER, end=_INTEGER
)
_PREDICTION = _object(label=TEXT, score=_NUMBER)
_ZERO_SHOT = _object(sequence=TEXT, labels=_list(TEXT), scores=_list(_NUMBER))
_ANSWER = _object(score=_NUMBER, start=_INTEGER, end=_INTEGER, answer=TEXT)
_FILLED = _object(score=_NUMBER, token=_INTEGER, token_str=TEXT, sequence=TEXT)
_TOKEN = _object(
    id=_INTEGER, text=TEXT, special={"type": "boolean"}, start=_INTEGER | {"nullable": True}, stop=_INTEGER
)

# What each endpoint does, an example of a request, and the schema of its answer.
_ENDPOINTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "predict": (
        "Classifies a text or a pair; the most probable label is first. A list of inputs gives a list of answers.",
        {"inputs": "A fine film."},
        {"oneOf": [_list(_PREDICTION), _list(_list(_PREDICTION))]},
    ),
    "rerank": (
        "Orders documents by their relevance to a query, the best first.",
        {"query": "who wrote it?", "texts": ["a novel by Harper Lee", "a film"]},
        _list(_object(index=_INTEGER, score=_NUMBER, text=TEXT)),
    ),
    "embed": ("Returns one vector for each text.", {"inputs": "A fine film."}, _list(_list(_NUMBER))),
    "tokenize": ("Returns the tokens of texts.", {"inputs": "A fine film."}, _list(_list(_TOKEN))),
    "zero-shot": (
        "Classifies texts into labels that the request names.",
        {"inputs": "The match ended in a draw.", "candidate_labels": ["sport", "politics"]},
        {"oneOf": [_ZERO_SHOT, _list(_ZERO_SHOT)]},
    ),
    "ner": (
        "Finds named entities, or labels tokens with the aggregation strategy none.",
        {"inputs": "Ada Lovelace lived in London."},
        {"oneOf": [_list(_ENTITY), _list(_list(_ENTITY))]},
    ),
    "qa": (
        "Finds the answer to a question in a context of any length. With top_k a question has a list of answers.",
        {"inputs": {"question": "Where did she live?", "context": "Ada Lovelace lived in London."}},
        {"oneOf": [_ANSWER, _list(_ANSWER), _list(_list(_ANSWER))]},
    ),
    "fill-mask": (
        "Returns the most probable tokens for each [MASK]. A text with several [MASK] has a list of lists.",
        {"inputs": "A fine [MASK]."},
        {"oneOf": [_list(_FILLED), _list(_list(_FILLED))]},
    ),
}

_ERRORS = {
    "400": "The body is not JSON, or a list is empty.",
    "401": "The token is missing or wrong.",
    "408": "The request did not arrive in time.",
    "413": "Too many bytes, texts, characters or tokens.",
    "415": "The body is not application/json.",
    "422": "A field is missing, unknown, or of a wrong type or value.",
    "424": "The computation failed.",
    "429": "There is no place in the queue; the header Retry-After says when to try again.",
    "503": "The server is starting or stopping, or the request was not answered in time.",
}

# The addresses without a body: what each returns.
_OTHERS = {
    "/health": "Status 200 when all programs are compiled, else 503.",
    "/metrics": "The server's figures, for Prometheus.",
    "/models": "The models, their endpoints and limits.",
    "/openapi.json": "This description.",
}


def document(models: Sequence[tuple[str, str, Sequence[str]]]) -> dict[str, Any]:
    """Returns the OpenAPI document of models, each given by the beginning of its addresses, its name and endpoints."""
    paths: dict[str, Any] = {}
    for prefix, name, endpoints in models:
        for endpoint in endpoints:
            paths[f"{prefix}/{endpoint}"] = {"post": _operation(name, endpoint)}
        paths[f"{prefix}/info"] = {"get": _reading(f"The model {name} and its limits.")}
    for path, note in _OTHERS.items():
        paths[path] = {"get": _reading(note)}
    error = _object(error=TEXT, error_type=TEXT)
    return {
        "openapi": "3.0.3",
        "info": {"title": "deberta-jax serve", "version": version("deberta_jax")},
        "paths": paths,
        "components": {
            "schemas": {"Error": error},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


def _operation(model: str, endpoint: str) -> dict[str, Any]:
    note, example, answer = _ENDPOINTS[endpoint]
    fields = FIELDS[endpoint]
    body = {
        "type": "object",
        "properties": {name: _field(field) for name, field in fields.items()},
        "required": [name for name, field in fields.items() if field.default is REQUIRED],
        "additionalProperties": False,
    }
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    responses: dict[str, Any] = {
        "200": {"description": "The answer.", "content": {"application/json": {"schema": answer}}}
    }
    responses |= {status: {"description": text, "content": error} for status, text in _ERRORS.items()}
    return {
        "summary": note,
        "tags": [model],
        "requestBody": {"required": True, "content": {"application/json": {"schema": body, "example": example}}},
        "responses": responses,
    }


def _field(field: Field) -> dict[str, Any]:
    return {**field.schema, "description": field.note}


def _reading(note: str) -> dict[str, Any]:
    return {"summary": note, "responses": {"200": {"description": note}}}


_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 0 auto; padding: 1rem; }
code, pre { font: 14px/1.45 ui-monospace, monospace; }
pre { overflow: auto; padding: .75rem; border: 1px solid #8886; border-radius: 6px; }
table { border-collapse: collapse; width: 100%; }
td { border-top: 1px solid #8886; padding: .3rem .6rem .3rem 0; vertical-align: top; }
"""


def documentation_page(described: Mapping[str, Any]) -> str:
    """Returns an OpenAPI document as a page without scripts."""
    parts = []
    for path, operations in described["paths"].items():
        ((method, operation),) = operations.items()
        parts.append(
            f"<h2><code>{method.upper()} {html.escape(path)}</code></h2><p>{html.escape(operation['summary'])}</p>"
        )
        if "requestBody" in operation:
            content = operation["requestBody"]["content"]["application/json"]
            parts += [_table(content["schema"]), _command(path, content["example"])]
    errors = "".join(f"<tr><td>{status}</td><td>{html.escape(text)}</td></tr>" for status, text in _ERRORS.items())
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>deberta-jax serve: addresses</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style>'
        '<h1>Addresses</h1><p><a href="/">Try it</a> · <a href="/openapi.json">OpenAPI</a></p>'
        f'{"".join(parts)}<h2>Errors</h2><p>The body is <code>{{"error": ..., "error_type": ...}}</code>.</p>'
        f"<table>{errors}</table></html>"
    )


def _table(schema: Mapping[str, Any]) -> str:
    rows = []
    for name, field in schema["properties"].items():
        more = " (required)" if name in schema["required"] else ""
        default = f" Default: {json.dumps(field['default'])}." if "default" in field else ""
        rows.append(
            f"<tr><td><code>{name}</code>{more}</td><td>{html.escape(field['description'] + default)}</td></tr>"
        )
    return f"<table>{''.join(rows)}</table>"


def _command(path: str, example: Mapping[str, Any]) -> str:
    text = f"curl http://127.0.0.1:8080{path} -H 'Content-Type: application/json' \\\n  -d '{json.dumps(example)}'"
    return f"<pre>{html.escape(text)}</pre>"
