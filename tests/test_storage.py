"""Files written whole or not at all, locks between processes, and what is said when the system refuses."""

import errno
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from deberta_jax import errors, storage
from deberta_jax.errors import InputError

PACKAGE = Path(storage.__file__).parents[1]


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    """Another process that runs this code, with storage imported."""
    source = f"import os, signal, sys, time\nfrom pathlib import Path\nfrom deberta_jax import storage\n{code}"
    env = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    command = [sys.executable, "-c", source, *arguments]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def holding(code: str, *arguments: str) -> subprocess.Popen[str]:
    """Another process, when it has printed that it is where the test wants it."""
    process = python(code, *arguments)
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    return process


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_file_that_fails_half_way_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fails() -> None:
        with storage.writing(path) as file:
            file.write(b"new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["a.txt"]


def test_a_file_replaced_keeps_its_permissions(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    path.chmod(0o640)
    storage.write_text(path, "new")
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_process_killed_while_it_writes_leaves_the_old_file_and_no_lock(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    code = (
        "with storage.output_text('--output', sys.argv[1]) as file:\n"
        "    file.write('new'); file.flush(); print('here', flush=True); time.sleep(60)"
    )
    process = holding(code, str(path))
    with (
        pytest.raises(InputError, match=r"--output .*a\.txt: another process is writing there"),
        storage.output_text("--output", str(path)),
    ):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert path.read_text() == "old"
    with storage.output_text("--output", str(path)) as file:
        file.write("newer")
    assert path.read_text() == "newer"
    assert names_in(tmp_path) == ["a.txt"]


def test_a_symbolic_link_stays_and_its_file_is_written(tmp_path):
    (tmp_path / "there").mkdir()
    link, target = tmp_path / "link.txt", tmp_path / "there" / "real.txt"
    link.symlink_to(target)
    for text in ("first", "second"):  # of a file that is not there yet, and of one that is
        storage.write_text(link, text)
        assert link.is_symlink()
        assert target.read_text() == text
    assert names_in(tmp_path / "there") == ["real.txt"]


def test_a_pipe_is_written_to_and_stays(tmp_path):
    pipe, received = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()))
    reader.start()
    storage.write_text(pipe, "through")
    reader.join(10)
    assert received == [b"through"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert names_in(tmp_path) == ["pipe"]


def test_a_character_device_is_written_to_and_stays():
    ours, theirs = os.openpty()  # a terminal of our own
    try:
        name = os.ttyname(theirs)
        storage.write_text(name, "shown\n")
        assert os.read(ours, 100) == b"shown\r\n"
        assert stat.S_ISCHR(os.stat(name).st_mode)
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_disk_is_refused(tmp_path):
    disk = tmp_path / "disk"
    try:
        os.mknod(disk, stat.S_IFBLK | 0o600, os.makedev(0, 0))  # of no driver
    except (PermissionError, OSError):
        pytest.skip("needs the right to make a device file")
    with pytest.raises(InputError, match="is a disk; give a file"):
        storage.check_output_file("--output", str(disk))
    with pytest.raises(InputError, match="is a disk; give a file"):
        storage.write_text(disk, "text")


def test_standard_output_by_a_name_goes_after_what_it_holds(tmp_path):
    """`command --output /dev/stdout >> file` keeps the file's beginning."""
    out = tmp_path / "out"
    code = (
        "print('first', flush=True)\nfor name in ('/dev/stdout', '/dev/fd/1'): storage.write_text(name, name + '\\n')"
    )
    env = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    out.write_text("before\n")
    with out.open("a") as file:
        source = f"from deberta_jax import storage\n{code}"
        subprocess.run([sys.executable, "-c", source], env=env, stdout=file, check=True)
    assert out.read_text() == "before\nfirst\n/dev/stdout\n/dev/fd/1\n"


def test_a_directory_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "model"

    def fails() -> None:
        with storage.staged(path, last="config.json") as stage:
            storage.write_text(stage / "config.json", "{}")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert names_in(tmp_path) == []
    with storage.staged(path, last="config.json") as stage:
        storage.write_text(stage / "config.json", "{}")
        assert not path.exists()
    assert names_in(tmp_path) == ["model"]
    assert names_in(path) == ["config.json"]


def test_an_empty_directory_takes_the_files_and_stays(tmp_path):
    """It may be a mount, a working directory, or have permissions of its own, and its parent may be closed."""
    path = tmp_path / "model"
    path.mkdir()
    path.chmod(0o2770)
    before = path.stat()
    with storage.staged(path, last="config.json") as stage:
        storage.write_text(stage / "config.json", "{}")
    assert (path.stat().st_ino, path.stat().st_mode) == (before.st_ino, before.st_mode)
    assert names_in(path) == ["config.json"]


def test_a_directory_replaced_never_holds_old_beside_new_with_the_last_file(tmp_path, monkeypatch):
    """After each single step of the operating system, as if the process were killed there."""
    path = tmp_path / "model"
    path.mkdir()
    for name in ("config.json", "weights-1", "weights-2", "spm.model", "notes"):
        (path / name).write_text("old")
    (path / "params").mkdir()
    seen = []

    def watched(function):
        def call(*arguments, **options):
            out = function(*arguments, **options)
            seen.append({p.name: p.read_text() for p in path.iterdir() if p.is_file() and not p.name.startswith(".")})
            return out

        return call

    with storage.staged(path, last="config.json", stale=("weights-*", "params", "spm.model")) as stage:
        for name in ("config.json", "weights-1", "weights-3"):
            storage.write_text(stage / name, "new")
        for name in ("unlink", "rename", "rmdir"):
            monkeypatch.setattr(Path, name, watched(getattr(Path, name)))
    assert len(seen) > 4
    for files in seen:
        if "config.json" in files:
            rest = {files[name] for name in files if name.startswith("weights")}
            assert rest == {files["config.json"]}, files
    assert {p.name for p in path.iterdir()} == {"config.json", "weights-1", "weights-3", "notes"}


def test_what_lies_under_the_names_of_partial_files_and_locks_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / ".a.txt.partial-00000000").symlink_to(victim)
    storage.write_text(tmp_path / "a.txt", "text")
    assert not (tmp_path / "a.txt").is_symlink()
    (tmp_path / ".b.txt.lock").write_text("mine")
    with (
        pytest.raises(InputError, match="has the name of a lock file but is not one"),
        storage.output_text("--output", str(tmp_path / "b.txt")),
    ):
        pass
    assert victim.read_text() == (tmp_path / ".b.txt.lock").read_text() == "mine"
    assert (tmp_path / "a.txt").read_text() == "text"


def test_the_home_directory_in_names(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    storage.write_text("~/a.txt", "text")
    assert storage.read_text("~/a.txt") == "text"
    assert storage.output_directory("--output", "~/run") == tmp_path / "run"
    assert names_in(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gs:/bucket/run", "--output gs:/bucket/run: pathlib has cut this URL short; give it as text, gs://bucket/run"),
        ("https://host/run", "--output https://host/run: of URLs only gs://bucket/directory, s3://bucket/directory"),
        ("gs://", "of URLs only"),
    ],
)
def test_outputs_refuse_what_is_no_url_of_a_bucket(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for check in (storage.check_output_file, storage.check_output_directory, storage.output_directory):
        with pytest.raises(InputError, match=message):
            check("--output", name)
    with pytest.raises(InputError, match="must be on a local disk"):
        storage.local_directory("--output", "gs://bucket/run")
    assert names_in(tmp_path) == []


def test_a_link_to_a_directory_stays(tmp_path):
    (tmp_path / "disk" / "model").mkdir(parents=True)
    link = tmp_path / "model"
    link.symlink_to(tmp_path / "disk" / "model")
    with storage.staged(link, last="config.json") as stage:
        storage.write_text(stage / "config.json", "{}")
    assert link.is_symlink()
    assert names_in(tmp_path / "disk") == ["model"]
    assert names_in(link) == ["config.json"]


def test_what_a_killed_process_staged_is_removed_and_what_a_living_one_does_is_not(tmp_path):
    path = tmp_path / "model"
    code = (
        "with storage.staged(Path(sys.argv[1]), last='config.json') as stage:\n"
        "    storage.write_text(stage / 'part', 'x'); print('here', flush=True); time.sleep(60)"
    )
    process = holding(code, str(path))
    with pytest.raises(InputError, match="another process is writing there"), storage.staged(path, last="config.json"):
        pass
    process.kill()
    process.wait()
    with storage.staged(path, last="config.json") as stage:
        storage.write_text(stage / "config.json", "{}")
    assert names_in(tmp_path) == ["model"]
    assert names_in(path) == ["config.json"]


def test_of_processes_that_make_the_same_the_first_wins(tmp_path):
    code = (
        "with storage.made_once(Path(sys.argv[1]) / 'cached') as stage:\n"
        "    storage.write_text(stage / 'who', sys.argv[2]); time.sleep(0.2)"
    )
    processes = [python(code, str(tmp_path), str(i)) for i in range(3)]
    for process in processes:
        assert process.communicate(timeout=60)[1] == ""
        assert process.returncode == 0
    assert names_in(tmp_path) == ["cached"]
    assert (tmp_path / "cached" / "who").read_text() in {"0", "1", "2"}


def test_lines_up_to_one_cut_short(tmp_path):
    (tmp_path / "log").write_text('{"a": 1}\n{"a": 2}\n{"a"')
    assert storage.read_json_lines(tmp_path / "log") == [{"a": 1}, {"a": 2}]
    assert storage.read_json_lines(tmp_path / "none") == []


def test_ranges_of_a_file_and_arrays_that_the_disk_backs(tmp_path):
    path = tmp_path / "a.bin"
    np.arange(5, dtype="<u2").tofile(path)
    assert storage.read_range(path, 2, 4) == b"\x01\x00\x02\x00"
    assert storage.read_range(path, 8, 99) == b"\x04\x00"
    np.testing.assert_array_equal(storage.mapped_array(path, np.dtype("<u2")), range(5))
    path.write_bytes(b"")
    assert storage.mapped_array(path, np.dtype("<u2")).shape == (0,)


REFUSED = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "your share of this disk",
    errno.EROFS: "on a disk that can be written",
    errno.EACCES: "change its permissions",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "a part of the path is a file",
    errno.EISDIR: "name a file in it",
    errno.ENAMETOOLONG: "a shorter name",
    errno.EMFILE: "ulimit -n",
    errno.EIO: "the disk, or the network to it, has failed",
}


@pytest.mark.parametrize("number", REFUSED, ids=[errno.errorcode[number] for number in REFUSED])
def test_each_refusal_of_the_system_gets_advice_that_fits_it(number):
    line = storage.explain(OSError(number, os.strerror(number), "/there/a.txt"))
    assert line.startswith(f"/there/a.txt: {os.strerror(number)}; ")
    assert REFUSED[number] in line
    assert number in (errno.ENOSPC, errno.EDQUOT) or "make room" not in line


def test_refusals_as_the_system_makes_them(tmp_path):
    (tmp_path / "file").write_text("")
    circle = tmp_path / "circle"
    circle.symlink_to(circle)
    for path, advice in (
        (tmp_path / "file" / "a", "a part of the path is a file"),
        (tmp_path / ("x" * 300), "give a shorter name"),
        (circle, "symbolic links lead in a circle"),
        (tmp_path / "none" / "a", "check the path"),
    ):
        with pytest.raises(OSError) as error:
            path.read_bytes()
        assert advice in storage.explain(error.value)
        with pytest.raises((OSError, InputError)):
            storage.write_text(path, "text")
    assert names_in(tmp_path) == ["circle", "file"]


def test_a_disk_that_is_read_only_or_full(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        with pytest.raises(OSError, match="No space left") as error:
            storage.write_bytes(disk / "large", bytes(1 << 20))
        assert storage.explain(error.value).startswith(str(disk / "large"))
        assert "make room" in storage.explain(error.value)
        assert names_in(disk) == []
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(InputError, match=r"nothing can be written in .*Read-only.*on a disk that can be written"):
            storage.check_output_directory("--output", disk / "run")
        with pytest.raises(InputError, match="Read-only"):
            storage.check_output_file("--output", str(disk / "a.txt"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_lock_is_free_as_soon_as_its_process_has_ended(tmp_path):
    code = (
        "with storage.locked_directory('--output', Path(sys.argv[1])):\n    print('here', flush=True); time.sleep(60)"
    )
    process = holding(code, str(tmp_path / "new" / "run"))
    with (
        pytest.raises(InputError, match="another process is writing there"),
        storage.locked_directory("--output", tmp_path / "new" / "run"),
    ):
        pass
    process.terminate()
    process.wait()
    with storage.locked_directory("--output", tmp_path / "new" / "run"):
        pass


def test_a_directory_made_for_a_lock_goes_unless_it_is_used(tmp_path):
    with storage.locked_directory("--output", tmp_path / "a" / "b"):
        pass
    assert names_in(tmp_path) == []
    with storage.locked_directory("--output", tmp_path / "a" / "b"):
        storage.write_text(tmp_path / "a" / "b" / "c", "text")
    assert names_in(tmp_path / "a" / "b") == ["c"]


def test_where_the_cache_lies(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the standard says to ignore such
    monkeypatch.setenv("HOME", str(tmp_path))
    assert storage.cache_directory() == tmp_path / ".cache" / "deberta_jax"
    monkeypatch.setenv("HOME", str(tmp_path / "none"))
    assert storage.cache_directory() is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert storage.cache_directory() == tmp_path / "cache" / "deberta_jax"


@pytest.mark.timeout(60)
def test_only_regular_files_of_the_expected_size_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with open(tmp_path / "sparse.json", "wb") as file:
        file.truncate(100 << 30)
    for read in (storage.read_bytes, storage.read_text, storage.read_json, storage.read_json_lines):
        with pytest.raises(InputError, match="pipe: is a pipe; give a regular file"):
            read(tmp_path / "pipe")
        with pytest.raises(InputError, match=r"sparse.json: has 107,374,182,400 bytes; such a file has at most"):
            read(tmp_path / "sparse.json")
    with pytest.raises(InputError, match=r"is a directory|Is a directory"):
        storage.read_bytes(tmp_path)
    with pytest.raises(InputError, match=r"/dev/zero: is a device"):
        storage.read_bytes("/dev/zero")
    with pytest.raises(InputError, match="/dev/stdin: is a stream; give a file"):
        storage.read_bytes("/dev/stdin")
    with pytest.raises(InputError, match="none: No such file or directory; check the path"):
        storage.read_bytes(tmp_path / "none")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not readable as JSON"),
        (b"\xff\xfe", "not UTF-8 at byte 0; convert the file to UTF-8"),
        (b"{'a': 1}", "not readable as JSON"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b"[" * 65 + b"]" * 65, "nested more than 64 levels deep"),
        (b'{"a": ' * 500 + b"1" + b"}" * 500, "nested more than 64 levels deep"),
        (b"1" * 5000, "an integer of 5000 digits"),
        (b'{"a": -1' + b"0" * 300 + b"}", "an integer of 301 digits"),
    ],
)
def test_json_that_is_none_or_is_made_to_break_its_reader(content, message, tmp_path):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=f"a.json: .*{message}"):
        storage.read_json(tmp_path / "a.json")


def test_json_that_is_unusual_but_right(tmp_path):
    (tmp_path / "a.json").write_bytes(b"[" * 64 + b"-1000000000000000019884624838656" + b"]" * 64)
    value = storage.read_json(tmp_path / "a.json")
    for _ in range(64):
        value = value[0]
    assert value == -int(1e30)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"metrics": {}}', "damaged: step is missing; expected int"),
        ('{"step": true, "metrics": {}}', "damaged: step is True; expected int"),
        ('{"step": 1.0, "metrics": {}}', "damaged: step is 1.0; expected int"),
        ('{"step": 1, "metrics": [[[[[[1]]]]]]}', r"damaged: metrics is \[\[\[\[<list>\]\]\]\]; expected dict"),
        ('{"step": 1, "metrics": {}, "loss": "a"}', "damaged: loss is 'a'; expected float or null"),
        ("[]", "expected a JSON object, found list"),
    ],
)
def test_a_record_with_a_field_of_another_type(content, message, tmp_path):
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(InputError, match=message):
        storage.read_record(tmp_path / "r.json", {"step": int, "metrics": dict, "loss": (float, type(None))})


def test_a_record_keeps_what_is_not_asked_for(tmp_path):
    (tmp_path / "r.json").write_text('{"step": 1, "loss": 2, "more": [1]}')
    read = storage.read_record(tmp_path / "r.json", {"step": int, "loss": float})
    assert read == {"step": 1, "loss": 2, "more": [1]}


@pytest.mark.timeout(60)
def test_values_from_files_in_messages_are_short_and_printable():
    shared = ()
    for _ in range(60):
        shared = (shared, shared)
    for value in (
        shared,
        {"a" * 10**7: shared},
        [10**100_000],
        b"x" * 10**7,
        "\x1b[2J" * 10**6,
        object(),
        [None] * 10**6,
    ):
        text = errors.shown(value)
        assert len(text) <= 70
        assert text.isprintable()
    assert errors.shown({"a": [1, None, "x"], "b": (2.5,)}) == repr({"a": [1, None, "x"], "b": (2.5,)})
    message = str(InputError(f"{'a' * 10**6}\x1b[31m end"))
    assert len(message) < 4100
    assert message.endswith(r"\x1b[31m end")


def test_temporary_names_are_new_each_time_and_left_ones_go_after_an_hour(tmp_path, monkeypatch):
    names = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda old, new: (names.append(Path(old).name), replace(old, new)))
    for _ in range(20):
        storage.write_text(tmp_path / "a", "x")
    assert len(set(names)) == 20
    assert all(re.fullmatch(r"\.a\.partial-[0-9a-f]{8}", name) for name in names)
    for name, age in ((".a.partial-00000001", 10), (".a.partial-00000002", 4000), (".a.partial-mine", 4000)):
        (tmp_path / name).write_text("x")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    storage.write_text(tmp_path / "a", "x")
    assert names_in(tmp_path) == [".a.partial-00000001", ".a.partial-mine", "a"]


def test_a_cached_directory_has_the_permissions_of_the_umask(tmp_path):
    old = os.umask(0o022)
    try:
        with storage.made_once(tmp_path / "entry") as stage:
            storage.write_text(stage / "a", "x")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "entry").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "entry" / "a").stat().st_mode) == 0o644
