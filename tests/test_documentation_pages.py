"""The documentation holds together: links, code blocks, the table of pages, and figures that are those recorded."""

import json
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from benchmarks import plan, tables
from tests.system.pages import PAGES, ROOT, RUN, SHOWN, blocks
from tests.test_public_names import LISTED

DOCS = ROOT / "docs"
OTHER_PAGES = ["CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"]
README = (ROOT / "README.md").read_text(encoding="utf-8")

# What people ask first -> the page that answers it, and words that the answer has.
QUESTIONS = {
    "install on a TPU": ("docs/install.md", "'.[tpu]'"),
    "install on a GPU": ("docs/install.md", "'.[cuda13]'"),
    "install on a CPU": ("docs/install.md", "pip install .\n"),
    "fine-tune on my csv": ("docs/tutorials/finetune.md", "--train train.csv"),
    "which checkpoints load": ("docs/models.md", "## Which checkpoints load"),
    "is it exact": ("docs/explanations/exactness.md", "1e-5 absolute"),
    "how fast is it": ("docs/benchmarks/cpu.md", "times as fast as"),
    "convert my .bin": ("docs/tutorials/convert.md", "deberta-jax convert mymodel/pytorch_model.bin"),
    "change the attention": ("docs/tutorials/research.md", "## Change the attention scores"),
    "run on a pod": ("docs/tutorials/pods.md", "train/launch/xpk.sh mnli"),
    "resume": ("docs/guides/resume.md", "Run the same command again."),
    "rerank": ("docs/guides/rerank.md", "deberta_jax.CrossEncoder("),
    "embed texts": ("docs/guides/embed.md", "deberta_jax.encode("),
    "serve": ("docs/guides/serve.md", "deberta-jax serve runs/classifier"),
    "licence": ("README.md", "Apache-2.0"),
    "citation": ("CITATION.cff", "cff-version"),
    "report a problem": (".github/ISSUE_TEMPLATE/bug_report.yml", "body:"),
}


def prose(page: str) -> str:
    """The text of a page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.M | re.S)


def links(page: str) -> list[str]:
    """The targets of a page's links and images."""
    return re.findall(r"\]\(([^()\s]+)\)", re.sub(r"`[^`\n]*`(?!\]\()", "", prose(page)))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    text = prose(page.relative_to(ROOT).as_posix())
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    plain = [re.sub(r"[^\w\s-]", "", title.lower()).strip() for title in titles]
    return {re.sub(r"[-\s]+", "-", title) for title in plain}


def target(page: str, link: str) -> Path:
    """The file that a link of a page leads to."""
    return (ROOT / page).parent.joinpath(urlsplit(link).path).resolve() if urlsplit(link).path else ROOT / page


@pytest.mark.parametrize("page", [*PAGES, *OTHER_PAGES])
def test_links_lead_somewhere(page):
    for link in links(page):
        parts = urlsplit(link)
        assert not parts.scheme, f"{link}: the pages work without a network"
        file = target(page, link)
        assert file.is_file(), f"{link}: no such file"
        if page.startswith("docs/"):
            assert file.is_relative_to(DOCS), f"{link}: is not on the site"
        if parts.fragment and not file.is_relative_to(DOCS / "reference"):  # their anchors are made by the build
            assert parts.fragment in anchors(file), f"{link}: no such heading"


def test_the_links_and_anchors_of_this_test_are_found():
    assert {"docs/install.md", "LICENSE", "docs/images/cpu_speed.svg"} <= set(links("README.md"))
    assert "texts-longer-than-512-tokens" in anchors(DOCS / "explanations" / "differences.md")


@pytest.mark.parametrize("question", QUESTIONS)
def test_an_answer_is_at_most_three_clicks_away(question):
    page, words = QUESTIONS[question]
    assert words in (ROOT / page).read_text(encoding="utf-8")
    reached = {ROOT / "README.md"}
    for _ in range(3):
        pages = [file.relative_to(ROOT).as_posix() for file in reached if file.suffix == ".md"]
        reached |= {target(page, link) for page in pages for link in links(page)}
    assert ROOT / page in reached


def test_the_readme_is_short_and_begins_with_code():
    assert len(README.split()) < 700
    assert README.count("![") == 1
    assert README.splitlines().index("```python") < 25


@pytest.mark.parametrize("page", PAGES)
def test_code_blocks_are_run_or_say_why_not(page):
    for block in blocks(page):
        where = f"{page}:{block.line}"
        assert block.language in RUN + SHOWN, f"{where}: the language {block.language!r} is not known"
        if block.comment == "not run":
            assert block.language in RUN, f"{where}: is not run anyway"
            assert len(block.value.split()) >= 2, f"{where}: say why it is not run"
        if block.comment == "run with":
            assert " => " in block.value
            block.program()
    assert "\n    deberta" not in prose(page), "code without a language is not run"


def test_every_page_is_in_the_table_of_pages():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    named = re.findall(r"[\w/-]+\.md", json.dumps(nav))
    assert sorted(named) == sorted(page.removeprefix("docs/") for page in PAGES if page != "README.md")
    assert len(set(named)) == len(named)


def test_the_reference_has_every_public_module():
    marks = {
        mark
        for page in (DOCS / "reference").glob("*.md")
        for mark in re.findall(r"^\{\{ names of ([\w.]+) \}\}$", page.read_text(encoding="utf-8"), re.M)
    }
    assert marks == set(LISTED)


def test_tables_of_measurements_are_those_recorded():
    page = (DOCS / "benchmarks" / "cpu.md").read_text(encoding="utf-8")
    made = tables.model(), tables.peers(), tables.mixed_lengths(), tables.attention(), tables.pipelines()
    for table in made:
        assert table in page
    recorded = json.loads((ROOT / "benchmarks" / "results" / "plan.json").read_text(encoding="utf-8"))
    assert plan.table(recorded["plans"]).strip() in (DOCS / "benchmarks" / "plans.md").read_text(encoding="utf-8")


def test_estimates_for_tpus_are_those_recorded():
    page = (DOCS / "benchmarks" / "tpu.md").read_text(encoding="utf-8")
    results = ROOT / "benchmarks" / "results"
    for row in json.loads((results / "tpu_aot.json").read_text(encoding="utf-8"))["traffic"]:
        ratios = row["ratios"]
        assert f"| {row['length']} | {ratios['pallas_moved']:.2f} | {ratios['xla']:.1f} |" in page
    rows = json.loads((results / "tpu_cycles.json").read_text(encoding="utf-8"))["rows"]
    cycles = {
        (row["attention"], row["generation"], row["length"], row["part"]): row["kernel cycles"]
        for row in rows
        if row["kind"] == "attention" and not row["dropout"]
    }
    for length in (128, 512, 1024, 2048):
        ratios = [
            cycles["pallas", generation, length, part] / cycles["flash", generation, length, part]
            for generation in ("v5e", "v5p", "v6e")
            for part in ("forward", "both")
        ]
        shown = [f"{forward:.2f} / {both:.2f}" for forward, both in zip(ratios[::2], ratios[1::2], strict=True)]
        assert f"| {length} | {' | '.join(shown)} |" in page
    steps = [row for row in rows if row["kind"] == "step"]
    for length, batch in ((128, 32), (512, 8)):
        ratios = []
        for preset in ("deberta-v3-base", "deberta-v3-large"):
            found = {
                row["attention"]: row["cycles"] for row in steps if (row["preset"], row["length"]) == (preset, length)
            }
            ratios.append(found.pop("pallas") / min(found.values()))
        assert f"| {batch} x {length} | {ratios[0]:.2f} | {ratios[1]:.2f} |" in page


def test_figures_of_gpu_kernels_are_those_recorded():
    page = (DOCS / "benchmarks" / "tpu.md").read_text(encoding="utf-8")
    recorded = json.loads((ROOT / "benchmarks" / "results" / "gpu_aot.json").read_text(encoding="utf-8"))
    for program in recorded["programs"]:
        kernels = {kernel["name"].removeprefix("disentangled_attention_"): kernel for kernel in program["kernels"]}
        parts = [kernels[name] for name in ("forward", "backward_query", "backward_key")]
        shown = " | ".join(f"{part['registers']}, {part['spilled_bytes']} B" for part in parts)
        shared = max(part["shared_bytes"] for part in parts) / 1000
        card = program["card"].removesuffix("-80").upper()
        assert f"| {card} | {program['size']} | {shown} | {shared:.0f} KB |" in page


def test_training_results_are_those_recorded():
    page = (DOCS / "benchmarks" / "training.md").read_text(encoding="utf-8")
    results = ROOT / "benchmarks" / "results"
    beside = json.loads((results / "finetune_baseline.json").read_text(encoding="utf-8"))
    for task, digits in {"sst2": 3, "upos": 3, "stsb": 2, "cola": 2, "xquad": 1}.items():
        ours, torch = (beside[task]["medians"][side] for side in ("ours", "torch"))
        assert re.search(rf"\| {ours:.{digits}f}[^|]* \| {torch:.{digits}f} \|", page), task
        assert beside[task]["within_two_standard_errors"]
    runs = json.loads((results / "pretraining.json").read_text(encoding="utf-8"))["sst2"].values()
    medians = [f"{run['median']:.3f}" for run in runs]
    assert f"| accuracy | {' | '.join(medians)} |" in page
    gains = [f"{run['mean gain']:+.3f}, {run['its standard error']:.3f}" for run in runs if "mean gain" in run]
    assert f"| mean gain, its standard error | | {' | '.join(gains)} |" in page


def test_figures_are_those_that_the_script_draws():
    script = ROOT / "scripts" / "figures.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_citation_has_this_version():
    entry = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{entry["version"]}"' in project
    assert entry["license"] == "Apache-2.0"


@pytest.mark.parametrize("form", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda f: f.name)
def test_issue_forms_have_what_a_form_needs(form):
    entry = yaml.safe_load(form.read_text(encoding="utf-8"))
    assert entry["name"]
    assert entry["description"]
    ids = [part["id"] for part in entry["body"] if part["type"] != "markdown"]
    assert ids
    assert len(set(ids)) == len(ids)
