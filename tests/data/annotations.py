"""The same annotated texts in the formats of annotation tools; each function returns an ending and a content."""

import json

TEXTS = ["Anna Berg moved to Oslo.", "Bob sleeps in Rome \U0001f642 and Lima.", "Nobody here.", "Eva met Tom."]
SPANS = [
    [(0, 9, "PER"), (19, 23, "LOC")],
    [(0, 3, "PER"), (14, 18, "LOC"), (25, 29, "LOC")],
    [],
    [(0, 3, "PER"), (8, 11, "PER")],
]
LONG = (
    'Sentence #,Word,POS,Tag\r\nSentence: 1,Anna,NN,B-per\r\n,Berg,NN,O\r\n,"a, b",NN,O\r\nSentence: 2,Bob,NN,B-per\r\n'
    ",null,NN,O\r\n"
)


def lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def doccano_label():
    return "jsonl", lines({"id": i, "text": t, "label": s} for i, (t, s) in enumerate(zip(TEXTS, SPANS, strict=True)))


def doccano_entities():
    return "jsonl", lines(
        {
            "id": i,
            "text": t,
            "entities": [
                {"id": k, "label": label, "start_offset": a, "end_offset": b} for k, (a, b, label) in enumerate(s)
            ],
        }
        for i, (t, s) in enumerate(zip(TEXTS, SPANS, strict=True))
    )


def label_studio():
    def result(text, a, b, label):
        value = {"start": a, "end": b, "text": text[a:b], "labels": [label]}
        return {"from_name": "label", "to_name": "text", "type": "labels", "value": value}

    tasks = [
        {"id": i, "data": {"text": t}, "annotations": [{"result": [result(t, *span) for span in s]}]}
        for i, (t, s) in enumerate(zip(TEXTS, SPANS, strict=True))
    ]
    return "json", json.dumps(tasks)


def label_studio_min():
    tasks = [
        {"id": i, "text": t, "label": [{"start": a, "end": b, "text": t[a:b], "labels": [label]} for a, b, label in s]}
        for i, (t, s) in enumerate(zip(TEXTS, SPANS, strict=True))
    ]
    return "json", json.dumps(tasks)


def prodigy():
    return "jsonl", lines(
        {
            "text": t,
            "tokens": [{"text": w, "id": k} for k, w in enumerate(t.split())],
            "answer": "accept",
            "spans": [{"start": a, "end": b, "label": label, "token_start": 0} for a, b, label in s],
        }
        for t, s in zip(TEXTS, SPANS, strict=True)
    )
