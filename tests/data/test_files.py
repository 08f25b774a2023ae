"""Where files are looked for: by the letter, by a pattern, and in the zips that data sets are published as."""

import zipfile

import pytest

from deberta_jax.data.files import found, matching_files
from deberta_jax.errors import InputError
from deberta_jax.tasks.named import find_file, read_task


def zipped(path, **contents):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, text in contents.items():
            file.writestr(name, text)
    return path


def written(directory, *names):
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text("a,b\n1,2\n")


def test_what_is_there_by_the_letter_is_no_pattern(tmp_path):
    names = ["d[1]/a.csv", "d[1]/b*.csv", "d1/a.csv", "e/f/a.csv", "e/g/a.csv", "e/g/.a.csv"]
    written(tmp_path, *names)
    for name, files in {
        "d[1]/a.csv": ["d[1]/a.csv"],
        "d[1]/b*.csv": ["d[1]/b*.csv"],
        "d[1]/[ab]*.csv": ["d[1]/a.csv", "d[1]/b*.csv"],
        "d[12]/a.csv": ["d1/a.csv"],
        "e/*/*.csv": ["e/f/a.csv", "e/g/a.csv"],
    }.items():
        assert matching_files(str(tmp_path / name)) == [str(tmp_path / file) for file in files], name
    assert found(str(tmp_path / "none.csv")) == []
    with pytest.raises(InputError, match="no file matches"):
        matching_files(str(tmp_path / "d[1]/c*.csv"))


def test_a_tasks_files_are_found_in_folders(tmp_path):
    folder = tmp_path / "anli [v1.0]"
    written(folder, "R1/train.jsonl", "R3/train.jsonl")
    path = find_file("anli", f"{folder}/", "train")
    assert matching_files(path) == [str(folder / "R1/train.jsonl"), str(folder / "R3/train.jsonl")]


COLA = {
    "CoLA/train.tsv": "src\t0\t*\tBad\n",
    "CoLA/dev.tsv": "src\t1\t\tGood\n",
    "CoLA/original/raw/train.tsv": "not,this\n",
}


@pytest.mark.parametrize("directory", ["CoLA.zip", ".", "CoLA.zip/CoLA"])
def test_a_published_zip_is_read_where_it_lies(tmp_path, directory):
    zipped(tmp_path / "CoLA.zip", **COLA)
    zipped(tmp_path / "SST-2.zip", **{"SST-2/train.tsv": "sentence\tlabel\nfine\t1\n"})
    for split, sentence in (("train", "Bad"), ("dev", "Good")):
        path = find_file("cola", str(tmp_path / directory), split)
        assert path.endswith(f"CoLA.zip/CoLA/{split}.tsv")
        assert read_task("cola", [path]).columns["sentence"] == [sentence]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["CoLA.zip", "SST-2.zip"], "nothing is unpacked"


def test_a_pattern_within_a_zip(tmp_path):
    row = '{"context": "C", "hypothesis": "H", "label": "e"}\n'
    zipped(tmp_path / "anli_v1.0.zip", **{f"anli/R{i}/{n}.jsonl": row for i in (1, 2, 3) for n in ("train", "dev")})
    assert len(read_task("anli", [find_file("anli", str(tmp_path), "train")])) == 3


def test_zips_that_cannot_be_read(tmp_path):
    path = zipped(tmp_path / "CoLA.zip", **COLA)
    with pytest.raises(InputError, match=r"CoLA\.zip: is an archive; name a file in it, as in .*zip/CoLA/dev\.tsv"):
        read_task("cola", [str(path)])
    with pytest.raises(InputError, match=r"CoLA\.zip/CoLA/none\.tsv: no such file in the archive"):
        read_task("cola", [str(path / "CoLA" / "none.tsv")])
    with pytest.raises(InputError, match="no file train of sst2 there or in its zip"):
        find_file("sst2", str(tmp_path), "train")
    both = {f"ARC/{part}/ARC-{part}-Train.jsonl": "{}" for part in ("Easy", "Challenge")}
    zipped(tmp_path / "ARC.zip", **both)
    with pytest.raises(InputError, match=r"Challenge/\*-Train.jsonl and .*Easy/\*-Train.jsonl are all there"):
        find_file("arc", str(tmp_path), "train")
    assert find_file("arc", str(tmp_path / "ARC.zip/ARC/Easy"), "train").endswith("Easy/*-Train.jsonl")
    whole = path.read_bytes()
    for content in (whole[:-30], whole[:44] + b"\xff" * 12 + whole[56:]):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"CoLA\.zip: cannot be read as zip"):
            read_task("cola", [str(path / "CoLA" / "train.tsv")])
