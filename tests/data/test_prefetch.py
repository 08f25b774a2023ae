"""Items computed ahead: in order, at most so many, errors where the items would come, and no thread is left behind."""

import gc
import threading
import time

import pytest

from deberta_jax.data.prefetch import read_ahead


class Squares:
    """Squares that take unequal times, and an error at one place."""

    def __init__(self, count: int, broken: int = -1):
        self.count, self.broken, self.taken = count, broken, set()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        self.taken.add(index)
        time.sleep(0.002 * (index % 3))
        if index == self.broken:
            raise OSError("lost")
        return index * index


def no_thread_is_left() -> bool:
    for _ in range(500):
        if not any(thread.name.startswith("read-ahead") for thread in threading.enumerate()):
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("start", [0, 7, 29, 30])
def test_the_order_is_kept_from_any_item_to_the_end(start):
    assert list(read_ahead(Squares(30), start)) == [i * i for i in range(start, 30)]
    assert no_thread_is_left()


def test_an_error_is_raised_where_its_item_would_come():
    items = read_ahead(Squares(30, broken=11))
    assert [next(items) for _ in range(11)] == [i * i for i in range(11)]
    with pytest.raises(OSError, match="lost"):
        next(items)
    assert list(items) == []
    assert no_thread_is_left()


@pytest.mark.parametrize("end", ["closed", "deleted"])
def test_few_items_are_taken_in_advance_and_the_threads_end_with_the_iterator(end):
    source = Squares(1000)
    items = read_ahead(source)
    assert next(items) == 0
    time.sleep(0.1)
    assert source.taken == set(range(9)), "eight in advance"
    if end == "closed":
        items.close()
    del items
    gc.collect()
    assert no_thread_is_left()
    assert len(source.taken) == 9
