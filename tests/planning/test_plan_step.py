"""A plan of a small model on simulated devices: the step that training runs, counted by hand."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from deberta_jax.cli.main import main
from deberta_jax.planning.candidates import candidates
from deberta_jax.planning.costs import count
from deberta_jax.planning.hlo import parse_hlo
from deberta_jax.planning.programs import lower_for_cuda, make_program
from deberta_jax.planning.request import make_request
from deberta_jax.planning.targets import target_of
from deberta_jax.presets import PRESETS
from deberta_jax.training.experiment import RunOptions
from tests.planning.exchanges import unexpected

# A length whose multiples are no sizes of the model: so arrays with a place for each token can be told.
ROWS, LENGTH, WIDTH, WIDE, LAYERS, VOCABULARY = 16, 24, 64, 128, 3, 512
CONFIG = dataclasses.replace(
    PRESETS["deberta-v3-base"],
    hidden_size=WIDTH,
    num_hidden_layers=LAYERS,
    num_attention_heads=4,
    intermediate_size=WIDE,
    vocab_size=VOCABULARY,
)


def request(devices, **runtime):
    return make_request(
        "finetune",
        CONFIG,
        target_of(f"cpu:{devices}"),
        batch_size=ROWS,
        length=LENGTH,
        dtype="float32",
        runtime=RunOptions(**{"mesh_data": 1, "attention": "reference", **runtime}),
    )


@pytest.fixture(scope="module")
def shared():
    """On data=2, fsdp=4."""
    asked = request(8, mesh_data=2, mesh_fsdp=4)
    return asked, make_program(asked, jax.devices())


def products_by_hand():
    """Of a step on all devices: forward, and twice that backward."""
    tokens, distances = ROWS * LENGTH, 2 * LENGTH - 1
    projections = tokens * (4 * WIDTH * WIDTH + 2 * WIDTH * WIDE) + 2 * distances * WIDTH * WIDTH
    scores = tokens * WIDTH * (2 * LENGTH + 2 * distances)
    head = ROWS * (WIDTH * WIDTH + 2 * WIDTH)
    return 3 * 2 * (LAYERS * (projections + scores) + head)


@pytest.mark.slow
def test_products_of_the_step_within_two_percent_of_a_count_by_hand(shared):
    asked, made = shared
    counted = 8 * count(parse_hlo(made.compiled.as_text()), asked.mesh).flops
    # What no device has a share of is computed by all: the projections of the relative table.
    repeated = 7 * 3 * 2 * LAYERS * 2 * (2 * LENGTH - 1) * WIDTH * WIDTH
    assert products_by_hand() * 0.98 <= counted <= (products_by_hand() + repeated) * 1.02


@pytest.mark.slow
def test_products_on_one_device_within_two_percent_of_a_count_by_hand():
    asked = request(1)
    made = make_program(asked, jax.devices()[:1])
    assert count(parse_hlo(made.compiled.as_text()), asked.mesh).flops == pytest.approx(products_by_hand(), rel=0.02)


def test_the_state_is_sharded_over_the_devices(shared):
    _, made = shared
    model = parameters_by_hand()
    assert model * 4 / 4 <= made.held["parameters"] <= 1.05 * model * 4 / 4  # float32, a fourth a device
    assert made.held["optimizer"] == pytest.approx(2 * made.held["parameters"], rel=1e-3)
    assert made.held["batch"] == ROWS // 8 * (LENGTH * (4 + 1 + 4) + 4)
    memory = made.compiled.memory_analysis()
    assert sum(made.held.values()) == pytest.approx(memory.argument_size_in_bytes, rel=1e-3)


def parameters_by_hand():
    relative = 2 * 256 * WIDTH + 2 * WIDTH
    layer = 4 * (WIDTH * WIDTH + WIDTH) + 2 * WIDTH * WIDE + WIDE + WIDTH + 4 * WIDTH
    return VOCABULARY * WIDTH + 2 * WIDTH + relative + LAYERS * layer + WIDTH * WIDTH + WIDTH + 2 * WIDTH + 2


@pytest.mark.slow
def test_products_of_a_step_for_gpus_within_two_percent_of_a_count_by_hand():
    asked = make_request(
        "finetune",
        CONFIG,
        target_of("cuda:8"),
        batch_size=ROWS,
        length=LENGTH,
        dtype="float32",
        runtime=RunOptions(mesh_data=8, attention="xla"),
    )
    _, flops = lower_for_cuda(asked, jax.devices())
    repeated = 7 * 3 * 2 * LAYERS * 2 * (2 * LENGTH - 1) * WIDTH * WIDTH
    assert products_by_hand() * 0.98 <= 8 * flops <= (products_by_hand() + repeated) * 1.02


def test_no_device_gathers_the_batch(shared):
    asked, made = shared
    assert not unexpected(parse_hlo(made.compiled.as_text()), asked)


def test_activations_that_are_gathered_passed_on_or_added_up_are_seen(shared):
    asked, made = shared

    def here(x):
        x = jax.lax.all_gather(x[:1], "fsdp", axis=0, tiled=True)  # of one text each
        y = jax.lax.ppermute(jnp.tanh(x[:1]), "fsdp", [(0, 1), (1, 0)])
        return jax.lax.psum(jnp.sin(x[:2]), "data"), y

    batch = PartitionSpec(("data", "fsdp"))
    run = jax.jit(jax.shard_map(here, mesh=made.mesh, in_specs=batch, out_specs=(batch, batch), check_vma=False))
    text = run.lower(jax.ShapeDtypeStruct((ROWS, LENGTH, WIDTH), jnp.float32)).compile().as_text()
    kinds = [line.split()[0] for line in unexpected(parse_hlo(text), asked)]
    assert sorted(kinds) == ["all-gather", "all-reduce", "collective-permute"]


def test_candidates_divide_and_begin_with_what_recomputes_nothing():
    found = candidates(request(8))
    assert found[0].request.experiment.runtime.remat == "none"
    assert {guess.request.mesh["tensor"] for guess in found} == {1, 2, 4}
    for guess in found:
        m = guess.request.mesh
        assert m["data"] * m["fsdp"] * m["tensor"] == 8
        assert ROWS % (m["data"] * m["fsdp"]) == 0


def test_candidates_have_more_rows_where_those_are_free():
    assert {guess.request.rows for guess in candidates(request(4))} == {ROWS}
    found = candidates(request(4), free_rows=True)
    first = found[0]
    r = first.request
    begin = [g.request for g in found if g.request.mesh == r.mesh][:4]
    assert begin == [r, r.with_runtime(remat="dots"), r.with_rows(2 * ROWS), r.with_rows(4 * ROWS)]


@pytest.mark.slow
@pytest.mark.system
def test_a_sweep_through_the_command_line_tries_more_rows(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG.to_hf()))
    line = ["plan", "--model", str(tmp_path), "--topology", "cpu:4", "--length", "32", "--sweep", "--candidates", "5"]
    main([*line, "--json"])
    ranked = json.loads(capsys.readouterr().out)["ranked"]
    assert {plan["batch"] for plan in ranked} == {32, 64, 128}


@pytest.mark.system
@pytest.mark.parametrize(
    "job", ["finetune", *(pytest.param(j, marks=pytest.mark.slow) for j in ("mlm", "rtd", "predict"))]
)
def test_every_job_through_the_command_line_and_again_from_the_cache(job, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG.to_hf()))
    line = [
        "plan",
        "--model",
        str(tmp_path),
        "--job",
        job,
        "--topology",
        "cpu:4",
        "--mesh",
        "fsdp=2,tensor=2",
        "--length",
        "32",
        "--batch",
        "8",
        "--json",
    ]
    for cached in (False, True):
        main(line)
        found = json.loads(capsys.readouterr().out)
        assert found["cached"] is cached
        assert found["fits"] is None  # nobody said what a device has
        assert found["hbm_bytes_per_chip"] == sum(found["memory"].values()) > 0
        assert found["collective_bytes"] > 0
    main([*line[:6], "cuda:4", *line[7:]])
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] is None
    assert found["memory"]["parameters"] > 0
    assert "activations" in found["not_known"]
