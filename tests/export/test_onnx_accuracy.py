"""The accuracy of an exported classifier in 8 bits, on real data: SST-2, learnt from nothing."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import deberta_jax
from deberta_jax.cli.main import main
from deberta_jax.data import read_table
from deberta_jax.export import export_onnx
from deberta_jax.training.demo import small_config
from tests.made import stdout_of

pytestmark = pytest.mark.long
CONFIG = Path(__file__).resolve().parents[2] / "configs" / "sst2_from_scratch.py"
VOCABULARY, LENGTH = 4000, 64


def accuracy(directory: Path, dev: Path) -> float:
    """Of the exported file in ONNX Runtime, without this package's models."""
    table = read_table(dev)
    encoding = deberta_jax.load_tokenizer(str(directory))(table.texts("sentence"), padding=True, max_length=LENGTH)
    session = onnxruntime.InferenceSession(str(directory / "onnx" / "model.onnx"))
    inputs = {value.name: np.int64(encoding[value.name]) for value in session.get_inputs()}
    (logits,) = session.run(["logits"], inputs)
    names = json.loads((directory / "config.json").read_text())["id2label"]
    predicted = [names[str(label)] for label in logits.argmax(-1)]
    return float(np.mean([found == right for found, right in zip(predicted, table.column("label"), strict=True)]))


def test_int8_keeps_the_accuracy_on_sst2(data_dir, tmp_path, capsys, one_device):
    data = data_dir / "classification" / "sst2"
    train, dev = data / "train.tsv", data / "dev.tsv"
    blank, run = tmp_path / "blank", tmp_path / "run"
    deberta_jax.train_tokenizer(read_table(train).texts("sentence"), VOCABULARY, blank)
    (blank / "config.json").write_text(json.dumps(small_config(VOCABULARY, initializer_range=0.02).to_hf()))
    arguments = {"--config": CONFIG, "--model": blank, "--train": train, "--eval": dev, "--output": run, "--epochs": 2}
    main(["finetune", *(str(word) for pair in arguments.items() for word in pair)])
    evaluated = stdout_of(["evaluate", "--model", str(run), "--data", str(dev), "--text", "sentence"])
    ours = json.loads(evaluated)["accuracy"]
    exports = {
        "float32": export_onnx(run, tmp_path / "float32"),
        "int8": export_onnx(run, tmp_path / "int8", dtype="int8"),
        "float embeddings": export_onnx(run, tmp_path / "float embeddings", dtype="int8", keep_embeddings=True),
    }
    found = {name: accuracy(done.directory, dev) for name, done in exports.items()}
    sizes = {name: done.nbytes / exports["float32"].nbytes for name, done in exports.items()}
    with capsys.disabled():
        print("accuracy", ours, found, "size", sizes)
    assert ours > 0.7
    assert found["float32"] == ours
    assert abs(found["int8"] - ours) <= 0.01
    assert abs(found["float embeddings"] - ours) <= 0.01
    assert sizes["int8"] <= 0.3
