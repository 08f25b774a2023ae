"""Numbers of an experiment that cannot be meant: one line before anything is read, or plain arithmetic."""

import itertools
import math
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deberta_jax import InputError
from deberta_jax.data import batches as batches_module
from deberta_jax.data.batches import ExampleOrder, TrainingBatches, batch_rows
from deberta_jax.data.features import Features
from deberta_jax.data.packing import most_rows, pack
from deberta_jax.storage import mapped_npy, release
from deberta_jax.training.dry_run import describe_job
from deberta_jax.training.experiment import Finetune, Optimization, PretrainMLM, PretrainRTD, RunOptions
from deberta_jax.training.finetuning import plan_finetune
from tests.made import pretraining_home, refused


@pytest.mark.parametrize(
    ("part", "name", "value", "message"),
    [
        ("", "batching", "pack", "--batching 'pack': expected one of 'packed', 'buckets'"),
        ("", "train", ["train.csv"], "--train ['train.csv']: expected a text"),
        ("", "optimization", None, "--optimization None: expected a Optimization"),
        ("runtime", "resume", "yes", "--resume 'yes': expected one of 'auto', 'never'"),
        ("runtime", "keep_state", True, "--keep-state True: expected an integer"),
        ("runtime", "keep_state", 1.5, "--keep-state 1.5: expected an integer"),
        ("runtime", "scan", "no", "--scan 'no': expected True or False"),
        ("", "dtype", "fp16", "--dtype 'fp16': expected one of 'float32', 'bfloat16'"),
        ("", "dtype", None, "--dtype None: expected one of"),
        ("", "dropout", "0.1", "--dropout '0.1': expected a number or None"),
    ],
)
def test_every_option_of_an_experiment_has_its_type(part, name, value, message):
    e = Finetune()
    # Past the checks of types that only tests have.
    object.__setattr__(getattr(e, part) if part else e, name, value)
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        e.check()


@pytest.mark.parametrize("kind", [Finetune, PretrainMLM, PretrainRTD])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_every_float_of_an_experiment_is_finite(kind, value):
    fields = {"learning_rate", "warmup", "weight_decay", "beta1", "epsilon", "clip_norm", "layer_decay", "ema"}
    for name in fields:
        with pytest.raises(InputError, match=rf"^--{name.replace('_', '-')} {value}: must be a finite number"):
            kind(optimization=Optimization(**{name: value})).check()
    with pytest.raises(InputError, match=r"^--peak-tflops"):
        kind(runtime=RunOptions(peak_tflops=value)).check()
    own = {
        Finetune: ("sift", "sift_sigma", "sift_step", "lora_alpha", "dropout", "null_threshold"),
        PretrainMLM: ("mask_share",),
        PretrainRTD: ("mask_share", "discriminator_weight", "discriminator_learning_rate"),
    }
    for name in own[kind]:
        with pytest.raises(InputError, match=f"^--{name.replace('_', '-')}"):
            kind(**{name: value}).check()


def test_numbers_that_float32_lacks():
    with pytest.raises(InputError, match=r"--learning-rate 1e\+39: must be a number that float32 can represent"):
        Finetune(optimization=Optimization(learning_rate=1e39)).check()
    with pytest.raises(InputError, match="--epsilon 1e-60: is 0 in float32"):
        Finetune(optimization=Optimization(epsilon=1e-60)).check()


SEEDS = ("-1", str(-(2**63)), str(2**63), str(2**64), "9" * 4000)


@pytest.mark.parametrize("seed", SEEDS)
def test_seeds_that_no_generator_takes(task, tmp_path, capsys, seed):
    assert "--seed" in refused(task.arguments(tmp_path / "run", "--seed", seed), capsys)
    for kind in ("mlm", "rtd"):
        words = ["pretrain", kind, "--model", task.blank, "--from-scratch", "--train", "a", "--eval", "a"]
        line = refused([*words, "--output", tmp_path / "run", "--seed", seed], capsys)
        assert "--seed" in line
        assert "between 0 and 2**63 - 1" in line
    assert not (tmp_path / "run").exists()


def test_the_last_of_several_seeds_counts_too(task, tmp_path, capsys):
    line = refused(task.arguments(tmp_path / "run", "--seed", str(2**63 - 2), "--seeds", "3"), capsys)
    assert "--seeds 3: the last seed would be above 2**63 - 1" in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--epochs", "1000000000"), "--epochs 1000000000: makes 6000000000 steps"),
        (("--epochs", "9" * 4000), "--epochs (a number of 13288 bits): must be below 2**31"),
        (("--accumulate", "1000000000"), "--accumulate 1000000000: there are 16 examples in a batch"),
        (("--row-length", "1000000000"), "--row-length 1000000000: all examples together have"),
        (("--lora", "1000000000"), "--lora 1000000000: the largest of these kernels has 32"),
        (("--batch-size", str(2**40)), "must be below 2**31"),
        (("--deadline", str(2**40)), "must be at most 1000000 seconds"),
        (("--mesh-data", str(2**32), "--mesh-fsdp", str(2**32)), "does not fit 8 devices"),
    ],
)
def test_sizes_of_a_fine_tuning(task, tmp_path, capsys, words, message):
    assert message in refused(task.arguments(tmp_path / "run", "--dry-run", *words), capsys)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return pretraining_home(tmp_path_factory.mktemp("text"), 100)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--batch-size", "1000000000"), "a batch would have 8000000000 tokens, and the whole text has"),
        (("--max-length", "1000000000"), "a batch would have 8000000000 tokens, and the whole text has"),
        (("--steps", "3000000000"), "--steps 3000000000: must be below 2**31"),
        (("--longest-span", "1000000000"), "--longest-span 1000000000: must be at most --max-length 8"),
    ],
)
def test_sizes_of_a_pre_training(text, tmp_path, capsys, words, message):
    arguments = ["pretrain", "mlm", "--model", text / "blank", "--from-scratch", "--train", text / "train.txt"]
    arguments += ["--eval", text / "eval.txt", "--output", tmp_path / "run", "--batch-size", "8", "--max-length", "8"]
    assert message in refused([*arguments, "--dry-run", *words], capsys)
    assert message in refused([*arguments, "--dry-run", "--layout", "contiguous", *words], capsys)


def features_of(lengths):
    ids = np.zeros(int(sum(lengths)), np.int32)
    return Features(ids=ids, types=ids.astype(np.int8), starts=np.concatenate([[0], np.cumsum(lengths)]))


def peak_of(make):
    """The result, and the most bytes that were held meanwhile, by Python's and numpy's own account."""
    tracemalloc.start()
    try:
        return make(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_many_epochs_take_arithmetic(monkeypatch):
    monkeypatch.setattr(batches_module, "_SAMPLED_EXAMPLES", 1 << 12)  # tracing makes every allocation slow
    features = features_of(np.random.default_rng(0).integers(2, 60, 500))
    order = ExampleOrder(batch_size=16, seed=3, epochs=10_000_000)
    for buckets in ((), (16, 64)):
        batches, peak = peak_of(lambda buckets=buckets: TrainingBatches(features, order, 0, buckets=buckets))
        assert peak < 10e6
        assert len(batches) == 32 * 10_000_000
        for step in (0, 32 * 5_000_000 + 7, len(batches) - 1):
            assert batches.position(step) == step // 32 * 500 + step % 32 * 16
            assert sum(batches[step]["input_ids"].shape) > 0
            assert batches.size(step).examples in (16, 500 % 16)
    with pytest.raises(InputError, match="--epochs 100000000: makes 3200000000 steps"):
        TrainingBatches(features, ExampleOrder(batch_size=16, seed=3, epochs=100_000_000), 0)


def test_a_large_batch_has_the_rows_of_the_examples():
    features = features_of([5, 9, 7])
    order = ExampleOrder(batch_size=1_000_000_000, seed=0, epochs=2)
    for buckets in ((), (16,)):
        batches = TrainingBatches(features, order, 0, buckets=buckets, multiple=8)
        assert len(batches) == 2
        shapes = {batch["input_ids"].shape for batch in batches.examples()}
        assert {batches[step]["input_ids"].shape for step in range(2)} <= shapes
        assert max(rows for rows, _ in shapes) <= 1024
    order = ExampleOrder(batch_size=100_000_000, seed=0, epochs=1)
    many = features_of(np.full(2000, 3))
    (example,), peak = peak_of(lambda: list(TrainingBatches(many, order, 0, buckets=(1024,)).examples()))
    assert example["input_ids"].shape == (2048, 1024)
    assert peak < 1e6, "shapes alone need no rows"
    # What is small has all its rows: a run that began before goes on with the same programs.
    assert [batch_rows(size, 3) for size in (1, 32, 1024)] == [1, 32, 1024]
    assert batch_rows(4096, 3000) == 4096
    assert batch_rows(2048, 10**9) == 2048
    assert [batch_rows(10**9, count) for count in (1, 1024, 1025, 5000)] == [1024, 1024, 2048, 8192]


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 64), min_size=1, max_size=80).map(np.array),
    st.integers(1, 90),
    st.integers(1, 9),
    st.integers(0, 99),
)
def test_no_batch_needs_more_rows_than_the_bound(lengths, count, slots, seed):
    members = np.random.default_rng(seed).permutation(len(lengths))[:count]
    assert pack(lengths[members], 64, slots)[1] <= most_rows(lengths, count, 64, slots)


def test_the_shapes_of_ordinary_runs_are_those_of_all_their_epochs():
    """By the definition: quantiles of the rows that every batch of the run needs."""
    lengths = np.random.default_rng(5).integers(2, 90, 300)
    for epochs in (1, 3, 16, 40):
        batches = TrainingBatches(
            features_of(lengths), ExampleOrder(batch_size=8, seed=2, epochs=epochs), 0, multiple=2
        )
        length, slots = batches.packing.row_length, batches.packing.slots
        every = itertools.chain.from_iterable(
            np.split(np.random.default_rng([2, epoch]).permutation(300), range(8, 300, 8)) for epoch in range(epochs)
        )
        needed = sorted(pack(lengths[members], length, slots)[1] for members in every)
        at = [needed[math.ceil(q * (len(needed) - 1) / 3)] for q in (1, 2, 3)]
        assert batches.packing.counts == tuple(sorted({-(-rows // 2) * 2 for rows in at}))


def test_a_sample_of_the_epochs_is_followed_by_a_count_that_holds_any_batch(monkeypatch):
    monkeypatch.setattr(batches_module, "_SAMPLED_EXAMPLES", 0)
    monkeypatch.setattr(batches_module, "_SAMPLED_EPOCHS", 1)
    lengths = np.random.default_rng(5).integers(2, 90, 100)
    batches = TrainingBatches(features_of(lengths), ExampleOrder(batch_size=8, seed=2, epochs=400), 0)
    assert len(batches.packing.counts) <= 4
    for step in range(0, len(batches), 3):
        assert batches[step]["input_ids"].shape[0] in batches.packing.counts


@pytest.mark.slow
def test_a_dry_run_of_a_great_many_epochs(task, tmp_path, one_device):
    experiment = task.experiment(tmp_path / "run", epochs=300_000_000, max_length=2**31 - 1)
    _, job = plan_finetune(experiment)
    assert describe_job(job, compiled=False)["steps"] == 3 * 300_000_000


def test_of_very_many_examples_some_steps_decide_shapes_and_padding(monkeypatch):
    monkeypatch.setattr(batches_module, "_MOST_SAMPLED", 64)
    monkeypatch.setattr(batches_module, "_PADDING_STEPS", 3)
    lengths = np.random.default_rng(5).integers(2, 90, 1000)
    packed = []
    with monkeypatch.context() as counted:
        counted.setattr("deberta_jax.data.packing.pack", lambda *a: packed.append(len(a[0])) or pack(*a))
        batches = TrainingBatches(features_of(lengths), ExampleOrder(batch_size=8, seed=2, epochs=2), 0)
    assert packed == [8] * 8
    for step in range(0, len(batches), 7):
        assert batches[step]["input_ids"].shape[0] in batches.packing.counts
    first = [batches.size(step) for step in range(3)]
    assert batches.padding() == 1 - sum(s.tokens for s in first) / sum(s.token_slots for s in first)


def test_pages_of_large_mapped_features_do_not_stay_in_memory(monkeypatch, tmp_path):
    released = []
    monkeypatch.setattr(batches_module, "_LARGE_FEATURES", 0)
    monkeypatch.setattr(batches_module, "_MAPPED_EXAMPLES", 24)
    features = features_of(np.random.default_rng(5).integers(2, 90, 100))
    batches = TrainingBatches(features, ExampleOrder(batch_size=8, seed=2, epochs=1), 0)
    monkeypatch.setattr("deberta_jax.storage.release", lambda array: released.append(array.nbytes))
    for step in range(len(batches)):
        assert batches[step]["segment_ids"].any()
    assert sum(released) == len(batches) // 3 * features.nbytes
    np.save(tmp_path / "a.npy", np.arange(1 << 20))
    array = mapped_npy(tmp_path / "a.npy")
    assert array.sum() == sum(range(1 << 20))
    held = lambda: int(re.search(r"RssFile:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
    before = held()
    release(array)
    assert held() < before - 7000, "8 MB were in memory"
    assert array[-1] == (1 << 20) - 1
