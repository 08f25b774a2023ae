"""The benchmark's command on a tiny model: what it prints, and that its counts are those of the batch."""

import json

import numpy as np
import pytest

from deberta_jax import DebertaConfig
from deberta_jax.benchmarking.cases import Case, make_batch
from deberta_jax.cli.main import main

TINY = DebertaConfig(
    vocab_size=64,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=64,
    relative_attention=True,
    pos_att_type=("p2c", "c2p"),
    position_biased_input=False,
    position_buckets=8,
    share_att_key=True,
    norm_rel_ebd="layer_norm",
    legacy=False,
)


@pytest.mark.parametrize("texts", ["fixed", "mixed"])
def test_a_batch_has_the_rows_it_is_named_by(texts):
    case = Case(name="tiny", config=TINY, job="train", length=64, rows=4, dtype="float32", texts=texts)
    batch = make_batch(case)
    assert batch["input_ids"].shape == (4, 64)
    if texts == "fixed":
        assert batch["attention_mask"].all()
        return
    filled = (batch["segment_ids"] > 0).mean()
    assert filled > 0.85, "packed rows are nearly full"
    assert batch["segment_ids"].max(1).mean() > 3
    # Every text has its label and its place.
    for row in range(4):
        starts = batch["positions"][row][batch["positions"][row] >= 0]
        assert len(starts) == batch["segment_ids"][row].max() == (batch["labels"][row] >= 0).sum()
        assert (np.diff(batch["segment_ids"][row], prepend=0)[starts] != 0).all()


@pytest.mark.slow
@pytest.mark.system
def test_the_command(tmp_path, capsys):
    model, record, plot = tmp_path / "model", tmp_path / "bench.json", tmp_path / "bench.png"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(TINY.to_hf()))
    main(
        [
            "bench",
            "--models",
            str(model),
            "--lengths",
            "16",
            "--tokens",
            "64",
            "--steps",
            "2",
            "--dtypes",
            "float32",
            "--record",
            str(record),
            "--plot",
            str(plot),
        ]
    )
    out, err = capsys.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    assert [(r["job"], r["texts"]) for r in rows] == [
        (job, texts) for job in ("forward", "train") for texts in ("fixed", "mixed")
    ]
    for row in rows:
        assert row["shape"].endswith("x16")
        assert row["tokens_per_second"] > 0
        assert row["mfu"] is None, "a CPU has no data sheet here"
        assert row["program_bytes"] > 0
        assert (row["padding"] == 0) == (row["texts"] == "fixed")
    assert json.loads(record.read_text()) == rows
    assert plot.stat().st_size > 1000
    assert "tokens/s" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--plot", "bench.txt"], "--plot bench.txt: give a name that ends in .png, .svg, .pdf"),
        (["--steps", "0"], "--steps 0: must be at least 1"),
        (["--record", "/no/such/place/x.json"], "--record /no/such/place/x.json: its directory does not exist"),
        (["--lengths", "4"], "a row at least 8"),
    ],
)
def test_bad_arguments_are_one_line(arguments, says, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["bench", *arguments])
    assert stopped.value.code == 2
    err = capsys.readouterr().err.strip()
    assert says in err.split("\n")[-1]
