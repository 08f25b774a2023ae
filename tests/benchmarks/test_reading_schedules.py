"""The reader of the TPU compiler's schedules, on a listing made here in the compiler's form."""

import pytest

from benchmarks.tpu_schedule import read_schedule

ARITHMETIC, EMPTY = "{ %v1_v2 = vadd.f32 %v3_v4, %v5_v6 } /* a note */", "{ }"
DELAY = [EMPTY] * 4  # a branch takes effect after four more cycles


def branch(predicate: str, target: int) -> list[str]:
    return [f"{{ %9 = sbr.rel ({predicate}) target bundleno = {target} (0x0), region = 1 }}", *DELAY]


def count_up(number: int, counter: str, limit: int) -> list[str]:
    return [
        f"{{ %{counter} = sadd.s32 {number}, %s1_s1  ;;  %v1_v2 = vmul.f32 %v3_v4, %v5_v6 }}",
        f"{{ %p{counter} = scmp.ge.s32.totalorder %{counter}, {limit} /* loop exit test */ }}",
    ]


def listing() -> list[str]:
    """Five programs; in each a loop of three turns, and one of two alternatives, of 6 and of 2 cycles."""
    lines = [ARITHMETIC] * 3  # before the first program: not counted
    grid = len(lines)
    lines += count_up(1, "s10_s1", 7)
    loop = len(lines)
    lines += [*count_up(2, "s20_s2", 6), *branch("!%ps20_s2", loop)]
    lines += branch("!%p5_p5", len(lines) + 5 + 6)
    lines += [ARITHMETIC] * 6
    lines += branch("%p5_p5", len(lines) + 5 + 2)
    lines += [ARITHMETIC] * 2
    return [*lines, *branch("!%ps10_s1", grid), ARITHMETIC]


def write(folder, bundles, used):
    numbered = [
        f" {hex(n):>6} LB: > {text}" if n % 3 else f" {hex(n):>6}   :  {text}" for n, text in enumerate(bundles)
    ]
    (folder / "17-kernel.1-65-packed-bundles-post-ra.txt").write_text("LB: loop body\n\n" + "\n".join(numbered) + "\n")
    (folder / "17-kernel.1-64-schedule-analysis_packed-bundles-post-ra.txt").write_text("another listing\n")
    (folder / "17-kernel.10-65-packed-bundles-post-ra.txt").write_text("another kernel\n")
    header = "== CAPACITY:\nMXU, VALU\n    4     2\n== UTILIZATION:\n"
    name = "17-kernel.1-68-pre-delay_hlo-static-per-bundle-utilization.txt"
    (folder / name).write_text(header + "\n".join(used) + "\n")


def test_a_schedule_counts_turns_of_loops_and_either_alternative(tmp_path):
    bundles = listing()
    write(tmp_path, bundles, [f"1 {int('vadd' in text)}" for text in bundles])
    schedule = read_schedule(tmp_path, "kernel.1")
    assert schedule.programs == 5
    # The program's counter 2, the loop 3 times 2 + 5, both branches 5 each, 6 of the longer part, the last branch 5.
    assert schedule.cycles == 2 + 3 * (2 + 5) + 5 + 6 + 5 + 5
    assert schedule.shorter_cycles == schedule.cycles - 6 + 2
    assert schedule.empty == 4 * (3 + 1 + 1 + 1)
    assert schedule.units == {"MXU": -(-schedule.cycles // 4), "VALU": 3}
    assert schedule.binding_unit == "MXU"


def test_a_listing_that_is_not_understood_is_no_schedule(tmp_path):
    bundles = [text.replace("scmp.ge", "scmp.eq") for text in listing()]
    write(tmp_path, bundles, ["1 0"] * len(bundles))
    with pytest.raises(AssertionError):
        read_schedule(tmp_path, "kernel.1")
