"""Installs a wheel in an empty environment and uses it as a new user would: on Linux, macOS and Windows.

    python scripts/try_wheel.py dist/deberta_jax-*.whl [--constraint locks/python3.13.txt]

Runs ``deberta-jax --help``, makes a tokenizer and a tiny classifier from Python, and predicts with it from the command
line, all in a temporary folder outside the checkout, on the CPU.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

MAKE_MODEL = """
import jax
import deberta_jax

words = [a + b for a in "ba ko ri mu te sa lo ni ge du".split() for b in ("n", "st", "ll", "rk")]
texts = [" ".join(words[i % 40] for i in range(n, n + 6)) for n in range(300)]
tokenizer = deberta_jax.train_tokenizer(texts, 370, "tokenizer")
config = deberta_jax.DebertaConfig(
    vocab_size=376, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
    relative_attention=True, pos_att_type=("c2p", "p2c"), position_buckets=8,
)
model = deberta_jax.DebertaForSequenceClassification(config)
deberta_jax.save_pretrained("model", model, deberta_jax.init_params(model, jax.random.key(0)), tokenizer=tokenizer)
"""


def main() -> None:
    """Installs the wheel that the command line names, and uses it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--constraint", type=Path)
    args = parser.parse_args()
    constraint = ["--constraint", str(args.constraint.resolve())] if args.constraint else []
    wheel = args.wheel.resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        venv.create(folder / "env", with_pip=True)
        programs = folder / "env" / ("Scripts" if os.name == "nt" else "bin")
        python = programs / ("python.exe" if os.name == "nt" else "python")

        def run(*command: str | Path) -> str:
            print("+", *command, flush=True)
            environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
            done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            return done.stdout

        run(python, "-m", "pip", "install", "--quiet", *constraint, wheel)
        usage = run(programs / "deberta-jax", "--help")
        assert usage.startswith("usage: deberta-jax COMMAND"), usage
        run(python, "-c", MAKE_MODEL)
        (folder / "texts.csv").write_text("text\nban kost rill\nmurk ten\n", encoding="utf-8")
        run(
            programs / "deberta-jax", "predict", "--model", "model", "--input", "texts.csv", "--output", "answers.jsonl"
        )
        answers = [json.loads(line) for line in (folder / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
        assert len(answers) == 2, answers
        print(f"{wheel.name} works on {sys.platform} with Python {sys.version.split()[0]}: {answers}")


if __name__ == "__main__":
    main()
