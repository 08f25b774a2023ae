"""What a plan says: what takes the memory where the compiler refuses, what is not known, and what it costs."""

import dataclasses
import json
import pickle

import jax
import pytest

from deberta_jax.cli.main import main
from deberta_jax.errors import InputError
from deberta_jax.ops.attention import IMPLEMENTATIONS
from deberta_jax.planning import child, options, scaling
from deberta_jax.planning.compiling import Compiled
from deberta_jax.planning.costs import Collective, Costs
from deberta_jax.planning.page import write_page
from deberta_jax.planning.programs import MadeProgram
from deberta_jax.planning.report import Plan, as_json, plan_of
from deberta_jax.planning.request import make_request
from deberta_jax.planning.table import causes, format_plan, number
from deberta_jax.planning.targets import target_of
from deberta_jax.training.experiment import RunOptions
from tests.planning.small import CONFIG

FACTS = {"held": {"parameters": 1, "optimizer": 2, "batch": 3}, "seconds": 1.0, "versions": {}}


def request(topology, **runtime):
    target = target_of(topology)
    return make_request(
        "finetune",
        CONFIG,
        target,
        batch_size=8,
        length=32,
        dtype="bfloat16",
        runtime=RunOptions(**{"mesh_data": target.chips, **runtime}),
    )


def quick(asked):
    """A plan whose step takes a millisecond."""
    given = Collective("all-reduce", ("data",), 1.0, 8.0, 8.0, 8)
    costs = Costs(1e9, 1e9, (given,), ((1e9, 1e9),), {})
    seconds = {"compute": 1e-3, "memory": 0.0, "interconnect": 1e-4, "step": 1e-3}
    return Plan(asked, Compiled(FACTS, "-", True), FACTS["held"], 6.0, 1e9, costs, seconds, 1e9)


def test_a_program_too_large_is_refused_by_cause(tmp_path, monkeypatch):
    asked = request("cpu:8")
    said = (
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 19.25G of 15.75G hbm. Exceeded hbm capacity "
        "by 3.50G.\n\nTotal hbm usage >= 20.00G:\n    reserved        258.00M\n    program          19.25G"
    )

    def refuse(made):
        raise jax.errors.JaxRuntimeError(said)

    monkeypatch.setattr(MadeProgram, "compiled", property(refuse))
    child.main(tmp_path, pickle.dumps(asked))
    plan = plan_of(asked, Compiled(json.loads((tmp_path / "facts.json").read_text()), "", False), capacity=1.0)
    memory = as_json(plan)["memory"]
    assert plan.fits is False
    assert memory["parameters"] > 4 * CONFIG.vocab_size * CONFIG.hidden_size
    assert memory["optimizer"] == pytest.approx(2 * memory["parameters"], rel=1e-3)
    assert memory["batch"] == 32 * (4 + 1 + 4) + 4
    assert sum(memory.values()) == plan.needed == 20 * 2**30
    assert "activations and temporaries 21.5 GB" in causes(plan)
    assert "DOES NOT FIT" in format_plan(plan, as_json(plan) | {"model": "m"})


TEMPORARIES = (
    "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (26.06G) exceeds "
    "available HBM (15.75G)."
)


@pytest.mark.parametrize(("said", "needed"), [(TEMPORARIES, 6 + 26.06 * 2**30), ("RESOURCE_EXHAUSTED: no room", None)])
def test_a_program_whose_temporaries_alone_are_too_large(said, needed):
    """As libtpu 0.0.42 words it; and in words that are not known."""
    refused = child.too_large(said)
    facts = FACTS | {"held": {"parameters": 6}, "too_large": refused}
    plan = plan_of(request("cpu:8"), Compiled(facts, "", False), capacity=1.0)
    assert plan.fits is False
    assert as_json(plan)["hbm_bytes_per_chip"] == needed
    assert "inf" not in format_plan(plan, as_json(plan) | {"model": "m"})


def test_hours_and_money_have_three_figures_and_are_a_lower_bound():
    plan = quick(request("v5e-8"))
    found = as_json(plan, tokens=1e9, price=0.01) | {"model": "deberta-v3-base"}
    assert found["hours"] == pytest.approx(1e9 / 256 * 1e-3 / 3600)
    text = format_plan(plan, found)
    line = next(line for line in text.splitlines() if line.startswith("1e+09 tokens, at least"))
    assert line.endswith("1.09 h, 8.68 chip-hours, 0.0868 at the price given")
    assert any("lower bound" in note for note in found["notes"])
    assert text.startswith("model ")
    assert "deberta-v3-base" in text
    assert [number(value) for value in (0.0, 0.2, 3.14159, 12345.6)] == ["0", "0.200", "3.14", "12,346"]


def test_the_page_is_named_and_has_no_empty_plot(tmp_path):
    for topology, plots in (("v5e-8", 2), ("cuda:8", 1)):
        plan = quick(request(topology))
        if topology == "cuda:8":
            plan = dataclasses.replace(plan, costs=None, seconds={})
        write_page(str(tmp_path / "plan.html"), "deberta-v3-base", "text", plan, [])
        page = (tmp_path / "plan.html").read_text()
        title = f"Plan: deberta-v3-base, finetune on {plan.request.target.topology}"
        assert page.count(title) == 2
        assert page.count("<img") == plots


def test_more_chips_have_the_same_rows_each(monkeypatch):
    """Also where chips share rows: fewer rows than chips."""
    asked = request("v5e-16", mesh_data=2, mesh_fsdp=4, mesh_tensor=2)
    planned = []

    def plan(wider, **_):
        planned.append(wider)
        return quick(wider)

    monkeypatch.setattr(scaling, "make_plan", plan)
    points = scaling.scaling_points(quick(asked))
    assert [(r.target.chips, r.rows, r.mesh["data"]) for r in planned] == [(8, 4, 1), (256, 128, 32)]
    assert [p.chips for p in points] == [8, 256, 1024]


def test_what_the_model_does_not_name_is_what_a_run_takes():
    body = lambda topology: request(topology).experiment.runtime.attention
    # Before 0.11.2 JAX lacks what the GPU kernel needs.
    on_gpus = "xla" if jax.__version_info__ < (0, 11, 2) else "pallas"
    assert (body("cpu:8"), body("cuda:8"), body("v5e-8")) == ("blocked", on_gpus, "pallas")


def test_help_names_every_attention_implementation_and_how_the_rest_is_chosen(capsys):
    with pytest.raises(SystemExit):
        main(["plan", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "{auto,reference,xla,blocked,pallas}" in text
    assert set(IMPLEMENTATIONS) == {"reference", "xla", "blocked", "pallas"}
    assert "the least that fits by estimate; --sweep compares" in text


@pytest.mark.slow
@pytest.mark.system
def test_where_no_time_is_known_a_sweep_and_tokens_say_so(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG.to_hf()))
    line = [
        "plan",
        "--model",
        str(tmp_path),
        "--topology",
        "cpu:2",
        "--length",
        "32",
        "--sweep",
        "--candidates",
        "2",
        "--tokens",
        "1e9",
    ]
    main([*line, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["ranked_by"] == "memory"
    assert "hours" not in found
    main(line)
    text = capsys.readouterr().out
    for told in ("no time is known, so no hours and no cost", "no time is known, so plans are ranked by memory alone"):
        assert sum(told in note for note in found["notes"]) == 1
        assert text.count(told) == 1


@pytest.mark.system
def test_a_kernel_is_lowered_for_gpus(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG.to_hf()))
    main(
        ["plan", "--model", str(tmp_path), "--topology", "cuda:2", "--length", "32", "--attention", "pallas", "--json"]
    )
    found = json.loads(capsys.readouterr().out)
    assert found["attention"] == "pallas"
    assert found["flops"] > 0


def test_compiler_options_are_compared_with_the_defaults(monkeypatch):
    asked = []

    def plan(request, **_):
        asked.append(request.compiler_options)
        if request.xla_flags == "xla_bad=1":
            raise InputError("--xla-flags xla_bad=1: the compiler refuses them (no such option)")
        return quick(request)

    monkeypatch.setattr(options, "make_plan", plan)
    flags = ("xla_a=true --xla_b=4", "xla_bad=1")
    found = options.make_plans(options.PlanOptions(model="deberta-v3-base", topology="cpu:4", xla_flags=flags))
    told = found.text()
    assert asked == [(), (("xla_a", "true"), ("xla_b", "4")), (("xla_bad", "1"),)]
    table = told[told.index("compiler options") :].splitlines()
    assert table[0].split("  ")[0] == "compiler options"
    assert [row.split("  ")[0] for row in table[1:3]] == ["(defaults)", "xla_a=true xla_b=4"]
    assert "the compiler refuses them" in table[3]
    assert [plan["xla_flags"] for plan in found.to_json()["compared"]] == ["", "xla_a=true xla_b=4"]


@pytest.mark.parametrize(
    "flag",
    [pytest.param(("xla_cpu_enable_fast_math", "true"), marks=pytest.mark.slow), ("xla_no_such_option", "1")],
)
def test_compiler_options_reach_the_compiler(flag, tmp_path):
    asked = dataclasses.replace(request("cpu:8", mesh_data=8), compiler_options=(flag,))
    child.main(tmp_path, pickle.dumps(asked))
    refusal = tmp_path / "refusal"
    assert (tmp_path / "facts.json").is_file() == (flag[0] != "xla_no_such_option") == (not refusal.exists())
    if refusal.exists():
        told = refusal.read_text()
        assert told.startswith("--xla-flags xla_no_such_option=1: the compiler refuses them (")
        assert "xla_no_such_option" in told[30:]
