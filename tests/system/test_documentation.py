"""Runs every Python and bash block of the README and of the documentation, with small models in the place of real ones.

`pages.py` says how. A page finds in its directory the models, runs and files that it mentions and does not make itself.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import deberta_jax
from deberta_jax import init_params, save_pretrained
from tests.made import NOTHING_DEPRECATED, TINY, alone, stdout_of
from tests.system.pages import PAGES, ROOT, blocks
from tests.weights.files import torch_zip

pytestmark = pytest.mark.system

TEXTS = [
    "A fine film.",
    "A dull film.",
    "A great story.",
    "A poor story.",
    "Ada lives in London.",
    "Paris is in France.",
]
TABLE = "id,sentence,label\n" + "".join(f"{i},{text},{('good', 'bad')[i % 2]}\n" for i, text in enumerate(TEXTS[:4]))
FILES = {
    "train.csv": TABLE,
    "dev.csv": TABLE,
    "new.csv": TABLE,
    "text/a.txt": "\n".join(TEXTS * 8),
    "held_out.txt": "\n".join(TEXTS),
}
HUB = [f"microsoft/deberta-v3-{size}" for size in ("xsmall", "small", "base", "large")]
HEADS = {
    "runs/ner": deberta_jax.DebertaForTokenClassification,
    "runs/qa": deberta_jax.DebertaForQuestionAnswering,
    "runs/choice": deberta_jax.DebertaForMultipleChoice,
    "runs/mlm": deberta_jax.DebertaForMaskedLM,
    "runs/ranker": deberta_jax.DebertaForSequenceClassification,
    "runs/nli": deberta_jax.DebertaForSequenceClassification,
}
LABELS = {"runs/ranker": ("LABEL_0",), "runs/nli": ("entailment", "neutral", "contradiction")}
TRAINED = ["runs/mine", "runs/classifier", "runs/teacher", "runs/a", "runs/b"]


def made(home: Path) -> None:
    """Makes the models, runs and files that pages mention."""
    lines = [line for page in PAGES for line in (ROOT / page).read_text(encoding="utf-8").splitlines() if line.strip()]
    tokenizer = deberta_jax.train_tokenizer(lines + TEXTS, 600, home / "tokenizer")
    # 4-bit weights have blocks of 64 inputs.
    config = TINY.replace(vocab_size=tokenizer.vocab_size, max_position_embeddings=512, hidden_size=64)

    def save(name: str, model: deberta_jax.models.Model) -> Path:
        params = jax.jit(lambda: init_params(model, jax.random.key(0)))()
        save_pretrained(home / name, model, params, tokenizer=tokenizer)
        return home / name

    discriminator = save(HUB[0], deberta_jax.DebertaForReplacedTokenDetection(config))
    for name in HUB[1:]:
        shutil.copytree(discriminator, home / name)
    save("microsoft/deberta-base", deberta_jax.DebertaForMaskedLM(config.replace(legacy=False, mask_decoder=True)))
    for name, head in HEADS.items():
        save(name, head(config.replace(id2label=LABELS.get(name, config.id2label))))
    for name, text in FILES.items():
        (home / name).parent.mkdir(exist_ok=True)
        (home / name).write_text(text)

    # A checkpoint of PyTorch, and one with a head that is not known here.
    tensors = load_file(discriminator / "model.safetensors")
    (home / "mymodel").mkdir()
    for name in ("config.json", "spm.model", "tokenizer_config.json"):
        if (discriminator / name).is_file():
            shutil.copy(discriminator / name, home / "mymodel")
    (home / "mymodel" / "pytorch_model.bin").write_bytes(torch_zip(tensors))
    shutil.copytree(home / "runs/ner", home / "DIR")
    tensors = load_file(home / "DIR/model.safetensors")
    more = {"crf.transitions": np.zeros((2, 2), np.float32), "loss_fct.weight": np.ones(2, np.float32)}
    save_file(tensors | more, home / "DIR/model.safetensors")
    (home / "DIR/checksums.json").unlink()

    run = [
        "finetune",
        "--model",
        str(home / HUB[0]),
        "--train",
        str(home / "train.csv"),
        "--eval",
        str(home / "dev.csv"),
    ]
    columns = ["--text", "sentence", "--label", "label"]
    json.loads(stdout_of([*run, *columns, "--epochs", "1", "--output", str(home / TRAINED[0])]))
    for name in TRAINED[1:]:
        shutil.copytree(home / TRAINED[0], home / name)


@pytest.fixture(scope="module")
def home(session_directory) -> Path:
    """What pages find in their directory, made by the first process that asks."""
    directory = session_directory / "pages"
    with alone(session_directory):
        if not (directory / "complete").is_file():
            made(directory)
            (directory / "complete").touch()
    return directory


def provide(page: str, home: Path, directory: Path) -> None:
    """Copies what a page mentions and does not make."""
    text = (ROOT / page).read_text(encoding="utf-8")
    titles = {block.title for block in blocks(page)}
    for name in [*FILES, *HUB, "microsoft/deberta-base", *HEADS, *TRAINED, "mymodel", "DIR"]:
        outputs = rf'(--output |output="){re.escape(name)}\b'
        mentioned = re.search(rf"\b{re.escape(name.removesuffix('a.txt'))}", text)
        if name in titles or not mentioned or re.search(outputs, text):
            continue
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (home / name).is_dir() else shutil.copy
        copy(home / name, directory / name)


@pytest.fixture(scope="module")
def commands(tmp_path_factory) -> Path:
    """A directory of programs: `deberta-jax` and `python` are those of this checkout and this interpreter."""
    directory = tmp_path_factory.mktemp("bin")
    for name, arguments in {"deberta-jax": "-m deberta_jax.cli.main ", "python": ""}.items():
        (directory / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments}"$@"\n')
        (directory / name).chmod(0o755)
    return directory


OFTEN = ("README.md", "docs/quickstart.md")
"""What readers try first. The other pages take half an hour together."""

RUNNING = [page for page in PAGES if any(block.runs for block in blocks(page))]


@pytest.mark.parametrize(
    "page", [page if page in OFTEN else pytest.param(page, marks=pytest.mark.slow) for page in RUNNING]
)
def test_the_blocks_of_a_page_run(page, home, commands, tmp_path):
    provide(page, home, tmp_path)
    environment = os.environ | {
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": NOTHING_DEPRECATED,
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "system" / "pages.py", page],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=550,
    )
    assert done.returncode == 0, done.stdout[-4000:]
