"""Demonstrates the package in five minutes, on English text that comes with every Python.

A vocabulary and a masked language model are trained on the standard library's docstrings and ``pydoc``'s topics. Then
the model learns to put articles back into sentences, with and without that pre-training, with three seeds each.
"""

import dataclasses
import json
import logging
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deberta_jax import storage
from deberta_jax.config import DebertaConfig
from deberta_jax.data.corpus import read_documents
from deberta_jax.data.tables import read_table
from deberta_jax.errors import InputError
from deberta_jax.inference.pipelines import pipeline
from deberta_jax.inference.trained import TrainedOptions, load_trained
from deberta_jax.models import DebertaForMaskedLM, init_params
from deberta_jax.text import load_tokenizer, train_tokenizer
from deberta_jax.training.demo_text import with_articles, write_data
from deberta_jax.training.directory import Result
from deberta_jax.training.experiment import Finetune, Optimization, PretrainMLM, RunOptions
from deberta_jax.training.pretraining import pretrain
from deberta_jax.training.seeds import finetune_seeds
from deberta_jax.weights import save_pretrained

_log = logging.getLogger(__name__)

VOCABULARY = 4000
MAX_LENGTH = 64
SEEDS = 3
MASKED = (
    "This [MASK] returns a new list.",
    "Raise an [MASK] if the file does not exist.",
    "This method should not be [MASK] directly.",
)


@dataclasses.dataclass(frozen=True)
class DemoResult:
    """Holds what the demonstration measured.

    Attributes:
      parameters: number of the fine-tuned model.
      pretraining_losses: by step, in nats a masked token of held-out text, before the first step and at evaluations.
      guesses: by text, the most probable words for its [MASK], before and after pre-training.
      f1_pretrained: F1 of the articles in the test sentences, by seed.
      f1_from_scratch: of the same model without pre-training.
      sentences: three test sentences: without articles, with those of the model, and as they were.
      seconds: what the demonstration took; without the parts that an earlier call had finished.
    """

    parameters: int
    pretraining_losses: dict[int, float]
    guesses: dict[str, tuple[list[str], list[str]]]
    f1_pretrained: list[float]
    f1_from_scratch: list[float]
    sentences: list[tuple[str, str, str]]
    seconds: float


def run_demo(output: Path, *, pretraining_steps: int = 700, epochs: int = 8, seeds: int = SEEDS) -> DemoResult:
    """Starts the demonstration in ``output``, or continues it. Prints nothing on standard output.

    Raises:
      InputError: the output directory holds something else.
      SystemExit: a signal stopped it, after the state was saved.
    """
    there = {path.name for path in output.iterdir()} if output.is_dir() else set()
    if there - {storage.LOCK} and not (output / "data" / "pretrain.txt").is_file():
        raise InputError(f"--output {output}: is not empty and holds no demonstration; give another directory")
    with storage.locked_directory("--output", output):
        return _run_steps(output, pretraining_steps, epochs, seeds)


def _run_steps(output: Path, pretraining_steps: int, epochs: int, seeds: int) -> DemoResult:
    began = time.perf_counter()
    write_data(output / "data")
    write_blank_model(output)
    write_untrained_model(output)
    _log.info("pre-training by masked LM, %d steps", pretraining_steps)
    require_finished(pretrain(_pretraining(output, pretraining_steps)))
    _log.info("fine-tuning: where were the articles?")
    pretrained = _test_f1(output, _finetuning(output, "pretrained", epochs, seeds))
    _log.info("the same without pre-training")
    from_scratch = _test_f1(output, _finetuning(output, "blank", epochs, seeds))
    best = output / "articles" / "pretrained" / f"seed-{int(np.argmax(pretrained))}"
    result = DemoResult(
        parameters=parameter_count(best),
        pretraining_losses=_held_out_losses(output / "pretrained" / "log.jsonl"),
        guesses=_guesses(output),
        f1_pretrained=pretrained,
        f1_from_scratch=from_scratch,
        sentences=_restored(best, output / "data" / "test.jsonl"),
        seconds=time.perf_counter() - began,
    )
    storage.write_json(output / "demo.json", dataclasses.asdict(result))
    return result


def _pretraining(output: Path, steps: int) -> PretrainMLM:
    return PretrainMLM(
        model=str(output / "blank"),
        from_scratch=True,
        train=(str(output / "data" / "pretrain.txt"),),
        eval=str(output / "data" / "pretrain_held_out.txt"),
        output=str(output / "pretrained"),
        steps=steps,
        batch_size=32,
        max_length=MAX_LENGTH,
        eval_every=max(1, steps // 4),
        layout="contiguous",
        mask_share=0.25,
        optimization=Optimization(learning_rate=4e-3, warmup=0.06),
        runtime=RunOptions(log_every=25, checkpoint_every=1000),
    )


def _finetuning(output: Path, model: str, epochs: int, seeds: int) -> Finetune:
    """Returns the fine-tuning of ``output/model``, which differs in nothing else."""
    return Finetune(
        model=str(output / model),
        from_scratch=model == "blank",
        task="token-classification",
        train=str(output / "data" / "train.jsonl"),
        eval=str(output / "data" / "validation.jsonl"),
        text=("words",),
        label="tags",
        output=str(output / "articles" / ("from_scratch" if model == "blank" else model)),
        epochs=epochs,
        seeds=seeds,
        batch_size=32,
        max_length=MAX_LENGTH,
        optimization=Optimization(learning_rate=1e-3),
        runtime=RunOptions(keep_state=0),
    )


def _test_f1(output: Path, experiment: Finetune) -> list[float]:
    """Trains with each seed and returns F1 on the test sentences, which chose neither settings nor checkpoint."""
    summary = finetune_seeds(experiment)
    require_finished(Result(0, {}, summary["stopped"]))
    found = []
    for seed in range(experiment.seeds):
        options = TrainedOptions(model=f"{experiment.output}/seed-{seed}")
        data = str(output / "data" / "test.jsonl")
        task, model, table = load_trained(options, data, dtype="float32", labelled=True)
        found.append(float(model.metrics_for(task, table)["f1"] or 0))
    return found


def _held_out_losses(log: Path) -> dict[int, float]:
    return {entry["step"]: entry["eval"]["loss"] for entry in storage.read_json_lines(log) if "eval" in entry}


def _guesses(output: Path) -> dict[str, tuple[list[str], list[str]]]:
    """Returns the words that the models before and after pre-training put for [MASK], by text."""
    before, after = (pipeline("fill-mask", output / name)(MASKED, top_k=3) for name in ("untrained", "pretrained"))
    words = [[[guess["token_str"].strip() for guess in text] for text in answers] for answers in (before, after)]
    return {text: (words[0][i], words[1][i]) for i, text in enumerate(MASKED)}


def _restored(model: Path, data: Path, count: int = 3) -> list[tuple[str, str, str]]:
    """Returns sentences without articles, with those that the model puts there, and as they were."""
    task, loaded, table = load_trained(TrainedOptions(model=str(model)), str(data), dtype="float32", labelled=True)
    table = table.select(range(count))
    answers = loaded.answers_for(task, table)
    return [
        (" ".join(words), with_articles(words, answer["tags"]), with_articles(words, tags))
        for words, tags, answer in zip(table.word_lists("words"), table.word_lists("tags"), answers, strict=True)
    ]


def format_report(result: DemoResult, output: Path) -> str:
    """Returns the result as a page of text, with the next command to try."""
    best = output / "articles" / "pretrained" / f"seed-{int(np.argmax(result.f1_pretrained))}"
    sizes = [len(read_table(output / "data" / f"{name}.jsonl")) for name in ("train", "test")]
    return "\n".join(
        [
            "",
            f"Masked language model, {result.parameters / 1e6:.1f}M parameters: loss on held-out text, in nats a word "
            "piece",
            "",
            "  step  " + "".join(f"{step:8d}" for step in result.pretraining_losses),
            "  loss  " + "".join(f"{loss:8.2f}" for loss in result.pretraining_losses.values()),
            "",
            "What is [MASK]?",
            "",
            *_guess_lines(result),
            'Which words had "a", "an" or "the" before them?',
            f"{sizes[0]} sentences to learn from, {sizes[1]} to test; F1",
            "",
            *_f1_lines(result.f1_pretrained, result.f1_from_scratch),
            "",
            *_sentence_lines(result),
            f"  model directory  {best}",
            f"  report           {best / 'report.html'}",
            f"  took             {result.seconds:.0f} s",
            "",
            "Next, on your own file:",
            f"  deberta-jax predict --model {best} --input {output / 'data' / 'test.jsonl'} --output -",
            "",
        ]
    )


def _guess_lines(result: DemoResult) -> list[str]:
    lines = []
    for text, (before, after) in result.guesses.items():
        lines += [f"  {text}", f"    untrained    {', '.join(before)}", f"    pre-trained  {', '.join(after)}", ""]
    return lines


def _f1_lines(pretrained: Sequence[float], from_scratch: Sequence[float]) -> list[str]:
    """Returns the table of F1 by seed, and whether the difference is larger than the spread of the seeds."""
    rows = [
        ("seed", *(str(seed) for seed in range(len(pretrained))), "mean"),
        *(
            (name, *(f"{value:.3f}" for value in (*values, statistics.fmean(values))))
            for name, values in (("pre-trained", pretrained), ("not pre-trained", from_scratch))
        ),
    ]
    gain = statistics.fmean(pretrained) - statistics.fmean(from_scratch)
    spread = max(max(values) - min(values) for values in (pretrained, from_scratch))
    return [
        *(f"  {name:<16}" + "".join(f"{cell:>8}" for cell in cells) for name, *cells in rows),
        "",
        f"  difference of the means {gain:+.3f}, largest difference between seeds {spread:.3f}",
    ]


def _sentence_lines(result: DemoResult) -> list[str]:
    names = ("without articles", "put back by the model", "the original")
    return [
        line
        for sentence in result.sentences
        for line in (*(f"  {name:<22} {text}" for name, text in zip(names, sentence, strict=True)), "")
    ]


def require_finished(result: Result) -> Result:
    """Returns the result of a finished run. Raises SystemExit for one that a signal stopped."""
    if result.stopped is not None:
        _log.info("stopped by %s; run the same command to go on", result.stopped.name)
        raise SystemExit(128 + result.stopped)
    return result


def parameter_count(directory: Path) -> int:
    """Returns the number of parameters in a directory's model.safetensors, from its header."""
    with storage.opened(directory / "model.safetensors") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(int(np.prod(t["shape"])) for name, t in header.items() if name != "__metadata__")


def small_config(vocabulary: int, **changes: Any) -> DebertaConfig:
    """Returns the config of a v3 model of two layers that CPUs train in minutes.

    Args:
      vocabulary: number of tokens that a tokenizer is trained for; it adds a few of its own.
      changes: other fields of the config, or other values.
    """
    fields: dict[str, Any] = {
        "vocab_size": vocabulary + 8,
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 512,
        "max_position_embeddings": 128,
        "relative_attention": True,
        "pos_att_type": ("p2c", "c2p"),
        "position_biased_input": False,
        "position_buckets": 32,
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "legacy": False,
        "initializer_range": 0.06,  # 0.02 is for widths near 1000: about 0.7 / sqrt(width)
    }
    return DebertaConfig(**{**fields, **changes})


def write_blank_model(output: Path) -> None:
    """Writes a directory with a vocabulary trained on the text and the config of a small v3 model, without weights."""
    config = small_config(VOCABULARY)
    blank = output / "blank"
    if not (blank / "config.json").is_file():
        _log.info("training a vocabulary of %d pieces", VOCABULARY)
        train_tokenizer(read_documents(output / "data" / "pretrain.txt"), VOCABULARY, blank)
        storage.write_json(blank / "config.json", config.to_hf())


def write_untrained_model(output: Path) -> None:
    """Writes a masked LM with random weights, to compare with after pre-training."""
    if not (output / "untrained" / "config.json").is_file():
        config = DebertaConfig.from_hf(str(output / "blank" / "config.json"))
        model = DebertaForMaskedLM(config)
        params = jax.jit(lambda: init_params(model, jax.random.key(0)))()
        save_pretrained(output / "untrained", model, params, tokenizer=load_tokenizer(output / "blank"))
