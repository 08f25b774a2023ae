"""The list of digests of a directory: right digests, and every change of a file or of the list is noticed."""

import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest

from deberta_jax.errors import InputError
from deberta_jax.storage.checksums import (
    CHECKSUMS,
    _own_digest,
    compare_checksums,
    find_damage,
    read_checksums,
    write_checksums,
)

SIZES = {"empty": 0, "one": 1, "config.json": 700, "inner/merges.txt": 5_000, "inner/deep/model.safetensors": 100_003}


def directory_of(parent, sizes=SIZES):
    directory, rng = parent / "made", np.random.default_rng(0)
    for name, size in sizes.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(rng.bytes(size))
    write_checksums(directory)
    return directory


def flip(path, bit):
    with open(path, "r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def test_digests_are_those_of_sha256sum(tmp_path):
    directory = directory_of(tmp_path, SIZES | {"large": (9 << 20) + 1})
    entries = read_checksums(directory)
    assert set(entries) == {*SIZES, "large"}
    for name, entry in entries.items():
        pieces = tmp_path / f"{name.replace('/', '-')}.pieces"
        pieces.mkdir()
        subprocess.run(["split", "-b", str(entry.block), "-a", "4", directory / name, pieces / "x"], check=True)
        files = sorted(pieces.iterdir())
        out = subprocess.run(["sha256sum", *files], check=True, capture_output=True, text=True).stdout if files else ""
        assert [line.split()[0] for line in out.splitlines()] == list(entry.digests)
        assert entry.size == (directory / name).stat().st_size
        assert len(entry.digests) >= min(16, -(-entry.size // 64))
        assert entry.block <= 4 << 20


def test_a_copy_is_as_listed(tmp_path):
    copy = shutil.copytree(directory_of(tmp_path), tmp_path / "copy", copy_function=shutil.copy)
    for full in (True, False):
        assert compare_checksums(copy, full=full) == (len(SIZES), sum(SIZES.values()), ())
    assert find_damage(copy) is None


@pytest.mark.parametrize("full", [True, False])
def test_every_flipped_bit_of_a_small_file_is_noticed(tmp_path, full):
    directory, rng = directory_of(tmp_path), np.random.default_rng(1)
    for name, size in SIZES.items():
        for bit in rng.integers(0, size * 8, 10) if size else ():
            flip(directory / name, bit)
            (found,) = compare_checksums(directory, full=full).differences
            assert (found.name, found.kind, found.differing) == (name, "bytes", 1)
            flip(directory / name, bit)
    assert compare_checksums(directory, full=full).differences == ()


def test_a_quick_check_finds_what_it_reads_and_a_full_one_all(tmp_path):
    directory = directory_of(tmp_path, {"large": 17 << 20})
    for byte, always in ((0, True), ((17 << 20) - 1, True), (8 << 20, False)):
        flip(directory / "large", byte * 8)
        assert len(compare_checksums(directory, full=True).differences) == 1
        quick = [len(compare_checksums(directory, full=False).differences) for _ in range(50)]
        # Two of 14 inner blocks are read each time: 50 checks miss a block with a probability of 0.05 %.
        assert all(quick) if always else any(quick) and not all(quick)
        flip(directory / "large", byte * 8)


def test_every_flipped_bit_of_the_list_is_noticed_or_changes_nothing(tmp_path):
    directory = directory_of(tmp_path, {"config.json": 30, "one": 1})
    path = directory / CHECKSUMS
    parsed, entries = json.loads(path.read_text()), read_checksums(directory)
    bits = range(0, path.stat().st_size * 8, 5)
    noticed = 0
    for bit in bits:
        flip(path, bit)
        try:
            found = read_checksums(directory)
        except InputError:
            noticed += 1
        else:
            assert found == entries
            assert json.loads(path.read_text()) == parsed
        flip(path, bit)
    assert noticed > 0.95 * len(bits)
    flip(path, 100)
    with pytest.raises(InputError, match=re.escape(str(path))):
        read_checksums(directory)
    assert find_damage(directory) == f"{CHECKSUMS} is damaged"


def test_missing_cut_and_rewritten_files_are_told_apart(tmp_path):
    def compared(change):
        copy = shutil.copytree(directory_of(tmp_path), tmp_path / "copy")
        change(copy / "inner" / "merges.txt")
        (found,) = compare_checksums(copy, full=True).differences
        shutil.rmtree(copy)
        assert found.name == "inner/merges.txt"
        return found

    def replaced_by_a_pipe(path):
        path.unlink()
        os.mkfifo(path)

    rng = np.random.default_rng(2)
    assert compared(os.remove).text() == "inner/merges.txt is missing"
    assert compared(replaced_by_a_pipe).kind == "missing"
    assert compared(lambda path: os.truncate(path, 4_000))[1:6] == ("size", 12, 0, False, True)
    assert compared(lambda path: path.write_bytes(rng.bytes(4_000)))[1:6] == ("size", 12, 12, False, False)
    assert compared(lambda path: path.write_bytes(rng.bytes(5_000)))[1:6] == ("bytes", 16, 16, False, False)
    assert compared(lambda path: path.write_bytes(b""))[1:6] == ("size", 0, 0, False, True)


def test_blocks_of_zeros_are_told_apart(tmp_path):
    directory = directory_of(tmp_path)
    path = directory / "inner/deep/model.safetensors"
    os.truncate(path, 60_000)
    os.truncate(path, 100_003)
    (found,) = compare_checksums(directory, full=True).differences
    assert found[1:6] == ("bytes", 16, 7, True, False)


def test_a_list_names_no_file_outside_its_directory(tmp_path):
    directory = directory_of(tmp_path)
    for name in ("../made/one", "/etc/hostname", "inner/../one", "inner//one"):
        body = json.loads((directory / CHECKSUMS).read_text())
        body["files"] = {name: body["files"]["one"]}
        del body["sha256"]
        body["sha256"] = _own_digest(body)
        (directory / CHECKSUMS).write_text(json.dumps(body))
        with pytest.raises(InputError, match="damaged"):
            read_checksums(directory)
        shutil.rmtree(directory)
        directory = directory_of(tmp_path)


def test_a_directory_without_a_list_has_nothing_to_compare(tmp_path):
    assert compare_checksums(tmp_path, full=True) is None
    assert find_damage(tmp_path) is None
