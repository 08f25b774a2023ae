"""What pre-training refuses: one line, exit code 2, nothing written; and what it finds only on its way."""

import dataclasses

import numpy as np
import pytest

from deberta_jax import DebertaForMaskedLM, DebertaForReplacedTokenDetection
from deberta_jax.data import shards
from deberta_jax.text import load_tokenizer, train_tokenizer
from deberta_jax.training.experiment import PretrainMLM, PretrainRTD
from deberta_jax.training.pretrain_objectives import masked_lm_config, rtd_configs
from deberta_jax.training.resolve import check_same_tokenizer
from tests.made import TINY, blank_model, pretraining_home, refused, rows, saved_model, stdout_of


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return pretraining_home(tmp_path_factory.mktemp("text"), 200)


def arguments(home, kind, output, *more):
    return [
        "pretrain",
        kind,
        "--model",
        home / "blank",
        "--from-scratch",
        "--train",
        home / "train.txt",
        "--eval",
        home / "eval.txt",
        "--output",
        output,
        "--steps",
        "4",
        "--batch-size",
        "16",
        "--max-length",
        "32",
        *more,
    ]


@pytest.fixture
def bad(home, tmp_path, capsys):
    """The error's line, and a proof that nothing was written."""

    def run(kind, *more, scratch=True):
        words = [word for word in arguments(home, kind, tmp_path / "run", *more) if scratch or word != "--from-scratch"]
        line = refused(words, capsys)
        assert not (tmp_path / "run").exists()
        return line

    return run


@pytest.fixture(scope="module")
def weighted(home, tmp_path_factory):
    """A generator with the mask decoder and a discriminator, with the tokenizer of the blank model."""
    directory, tokenizer = tmp_path_factory.mktemp("weighted"), load_tokenizer(home / "blank")
    generator = DebertaForMaskedLM(dataclasses.replace(TINY, mask_decoder=True))
    saved_model(directory / "generator", generator, tokenizer)
    saved_model(directory / "discriminator", DebertaForReplacedTokenDetection(TINY), tokenizer)
    return directory


@pytest.mark.parametrize("layout", ["packed", "contiguous"])
def test_rows_longer_than_a_table_of_absolute_positions(home, bad, weighted, tmp_path, layout):
    more = ("--max-length", "80", "--layout", layout)
    told = "has absolute positions for 64 tokens (max_position_embeddings); give --max-length 64 or less"
    assert f"--max-length 80: {home / 'blank'} {told}" in bad("mlm", *more, "--head", "mask-decoder")
    assert f"--max-length 80: the generator of {home / 'blank'} {told}" in bad("rtd", *more)
    ours = ("--generator", weighted / "generator", "--model", weighted / "discriminator")
    assert f"--max-length 80: {weighted / 'generator'} {told}" in bad("rtd", *more, *ours, scratch=False)
    assert f"{weighted / 'generator'} {told}" in bad("mlm", *more, "--model", weighted / "generator", scratch=False)
    biased = dataclasses.replace(TINY, position_biased_input=True)
    blank_model(tmp_path / "biased", biased)
    assert told in bad("mlm", *more, "--model", tmp_path / "biased")
    saved_model(tmp_path / "biased", DebertaForReplacedTokenDetection(biased))
    plain = DebertaForMaskedLM(dataclasses.replace(TINY, max_position_embeddings=64))
    plain = saved_model(tmp_path / "plain", plain)
    line = bad("rtd", *more, "--generator", plain, "--model", tmp_path / "biased", "--sharing", "none", scratch=False)
    assert f"--max-length 80: {tmp_path / 'biased'} {told}" in line


def test_rows_as_long_as_the_table_and_longer_ones_without_a_table(home):
    common = {"model": str(home / "blank"), "from_scratch": True}
    assert masked_lm_config(PretrainMLM(**common, max_length=64, head="mask-decoder")).mask_decoder
    assert not masked_lm_config(PretrainMLM(**common, max_length=80, head="plain")).has_position_table
    assert rtd_configs(PretrainRTD(**common, max_length=64))[0].mask_decoder


def test_a_generator_of_another_tokenizer(home, bad, weighted, tmp_path):
    other = train_tokenizer([text for text, _ in rows(300, classes=2, seed=8)], 390, tmp_path / "other")
    model = DebertaForMaskedLM(dataclasses.replace(TINY, mask_decoder=True))
    saved_model(tmp_path / "generator", model, other)
    ours = ("--model", weighted / "discriminator")
    line = bad("rtd", *ours, "--generator", tmp_path / "generator", scratch=False)
    assert f"--generator {tmp_path / 'generator'}: its tokenizer (spm, " in line
    assert f"is not that of {weighted / 'discriminator'} (spm, " in line
    # The tokenizer's own, saved with it, and one without any, go with it.
    saved_model(tmp_path / "bare", model)
    for generator in (weighted / "generator", tmp_path / "bare", tmp_path / "bare" / "model.safetensors"):
        check_same_tokenizer("--generator", str(generator), "model", load_tokenizer(home / "blank"))


def prepared(home, output, text="train.txt"):
    stdout_of([*map(str, ("prepare", "--tokenizer", home / "blank", "--input", home / text, "--output", output))])
    return output


@pytest.mark.slow
def test_an_id_beyond_the_vocabulary_ends_the_run_in_order(home, tmp_path, capsys, one_device, monkeypatch):
    monkeypatch.setattr(shards, "_HASHED_BYTES", 0)  # as in a shard that is too large to be hashed at each start
    tokens = prepared(home, tmp_path / "tokens") / "shard-00000.tokens"
    ids = np.fromfile(tokens, "<u2")
    ids[len(ids) // 2] = 60000
    ids.tofile(tokens)
    more = ("--train", tmp_path / "tokens", "--layout", "contiguous", "--steps", "20")
    line = refused(arguments(home, "mlm", tmp_path / "run", *more), capsys)
    assert f"{tmp_path / 'tokens'}: is damaged, it holds the id 60000" in line
    assert "run the same `deberta-jax prepare` again" in line
    assert (tmp_path / "run" / "sessions.jsonl").is_file(), "the session has ended as others do"


def test_a_directory_that_is_not_prepared_to_its_end(home, bad, tmp_path):
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "a.txt").write_text("ban")
    tokens = prepared(home, tmp_path / "unfinished")
    (tokens / "manifest.json").unlink()
    for name in ("plain", "unfinished"):
        for option in ("--train", "--eval"):
            line = bad("mlm", option, tmp_path / name)
            assert f"{tmp_path / name}: holds no manifest.json; run `deberta-jax prepare` to its end" in line
