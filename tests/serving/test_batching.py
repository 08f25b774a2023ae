"""The queue between requests and the device, with a program whose results can be read off the tokens."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deberta_jax.data.features import Features
from deberta_jax.inference.predict import Predictor
from deberta_jax.serving.batching import Batcher, BatchLimits, Program
from deberta_jax.serving.calls import Call
from deberta_jax.serving.errors import Abandoned, ServingError
from deberta_jax.serving.metrics import Metrics
from deberta_jax.sharding import make_mesh

MAX_LENGTH, ROWS = 32, 4


class Counted:
    """A compiled function that adds tokens, and lists of the shapes it was traced for and of batches' first tokens."""

    def __init__(self, per_token: bool = False):
        self.traced, self.computed, self.hold, self.fails = [], [], threading.Event(), False
        self.hold.set()

        def forward(params, batch):
            ids = jnp.where(batch["attention_mask"], batch["input_ids"], 0)
            self.traced.append(ids.shape)
            return jnp.stack([ids, 2 * ids], -1) if per_token else jnp.stack([ids.sum(1), ids.max(1)], -1) / params

        self._forward = jax.jit(forward)

    def __call__(self, params, batch):
        self.computed.append(int(batch["input_ids"][0, 0]))
        assert self.hold.wait(30)
        if self.fails:
            raise RuntimeError("no memory")
        return self._forward(params, batch)


class FakePredictor(Predictor):
    """What a batcher reads of a predictor."""

    def __init__(self):
        self.mesh, self.pad_id, self.max_length = make_mesh(devices=jax.devices()[:1]), 9, MAX_LENGTH
        self.rows, self.split = ROWS, 1


def batcher(program: Counted, per_token: bool = False, **limits) -> Batcher:
    made = Batcher(
        Program(program, 1.0, per_token), FakePredictor(), BatchLimits(**limits), Metrics().of_model("model")
    )
    made.start()
    return made


def features(*rows: list[int]) -> Features:
    lengths = [len(row) for row in rows]
    ids = np.concatenate([np.array(row, np.int32) for row in rows])
    return Features(ids=ids, types=np.zeros(len(ids), np.int8), starts=np.concatenate([[0], np.cumsum(lengths)]))


def until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def random_rows(rng, most: int) -> list[list[int]]:
    return [rng.integers(10, 1000, rng.integers(1, MAX_LENGTH + 1)).tolist() for _ in range(rng.integers(1, most + 1))]


def test_results_go_to_the_request_that_sent_the_rows():
    made = batcher(program := Counted(), batch_tokens=128)
    for _ in made.warm_up():
        pass
    shapes = len(program.traced)
    assert shapes == len(made.shapes())

    def ask(seed):
        rows = random_rows(np.random.default_rng(seed), 9)
        (found,) = made.submit(features(*rows))
        np.testing.assert_array_equal(found, [[sum(row), max(row)] for row in rows])

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(ask, range(300)))
    assert len(program.traced) == shapes, "nothing is compiled after the warm-up"
    made.close()


def test_results_of_tokens_have_the_length_of_their_rows():
    made = batcher(Counted(per_token=True), per_token=True)
    (found,) = made.submit(features([11, 12, 13], [14], [15, 16]))
    np.testing.assert_array_equal(found[:, 0], [11, 12, 13, 14, 15, 16])
    np.testing.assert_array_equal(found[:, 1], 2 * found[:, 0])
    made.close()


def test_shapes_stay_within_the_token_slots():
    made = batcher(Counted(), batch_tokens=64)
    assert all(rows * length <= 64 or rows == 1 for rows, length in made.shapes())
    assert {rows for rows, length in made.shapes() if length == 16} == {1, 4}
    assert {rows for rows, length in made.shapes() if length == MAX_LENGTH} == {1}
    made.close()


def test_the_first_rows_that_came_are_the_first_that_are_computed():
    program = Counted()
    made = batcher(program, batch_tokens=MAX_LENGTH)
    program.hold.clear()
    tokens = range(10, 18)
    with ThreadPoolExecutor(len(tokens)) as pool:
        for waiting, token in enumerate(tokens):
            pool.submit(made.submit, features([token] * MAX_LENGTH))
            # The first row is computed, until it is let go; the others wait in the queue.
            until(lambda waiting=waiting: program.computed and made._queued == waiting * MAX_LENGTH)
        program.hold.set()
    assert program.computed == list(tokens)
    made.close()


def test_a_full_queue_refuses_and_an_abandoned_request_leaves_it():
    program = Counted()
    made = batcher(program, batch_tokens=32, queue_tokens=48)
    program.hold.clear()
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(made.submit, features([11] * 32))
        until(lambda: program.computed)
        call = Call()

        def ask():
            with call.current():
                return made.submit(features([12] * 32))

        second = pool.submit(ask)
        until(lambda: made._queued == 32)
        with pytest.raises(ServingError) as caught:
            made.submit(features([13] * 32))
        assert (caught.value.status, caught.value.headers) == (429, {"Retry-After": "1"})
        call.abandon()
        with pytest.raises(Abandoned):
            second.result(10)
        third = pool.submit(made.submit, features([14] * 32))
        program.hold.set()
        assert first.result(10)[0][0].tolist() == [11 * 32, 11]
        assert third.result(10)[0][0].tolist() == [14 * 32, 14]
    made.close()


def test_a_call_that_is_abandoned_before_it_waits_does_not_wait():
    program = Counted()
    made, call = batcher(program), Call()
    program.hold.clear()
    call.abandon()
    with call.current(), pytest.raises(Abandoned):
        made.submit(features([11]))
    program.hold.set()
    made.close()


def test_a_batch_that_fails_is_an_error_of_its_requests_alone():
    program = Counted()
    made = batcher(program)
    program.fails = True
    with pytest.raises(ServingError) as caught:
        made.submit(features([11]))
    assert (caught.value.status, caught.value.error_type) == (424, "Backend")
    assert "no memory" not in caught.value.message
    program.fails = False
    assert made.submit(features([11]))[0].tolist() == [[11, 11]]
    assert made.alive
    made.close()


def test_scores_that_are_not_finite_are_refused():
    made = Batcher(Program(Counted(), np.nan), FakePredictor(), BatchLimits(), Metrics().of_model("model"))
    made.start()
    with pytest.raises(ServingError, match="NaN or infinite"):
        made.submit(features([11]))
    made.close()


def test_long_rows_and_large_requests_are_refused():
    made = batcher(Counted(), request_tokens=64)
    with pytest.raises(ServingError, match=f"may have {MAX_LENGTH} tokens, and one has 33"):
        made.submit(features([11] * 33))
    call = Call()
    with call.current():
        made.submit(features([11] * 32, [12] * 32))
        with pytest.raises(ServingError, match="more than 64 tokens"):
            made.submit(features([11]))
    made.close()


def test_who_still_waits_at_the_end_gets_an_error():
    program = Counted()
    made = batcher(program, batch_tokens=32)
    program.hold.clear()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(made.submit, features([11] * 32))
        until(lambda: program.computed)
        second = pool.submit(made.submit, features([12] * 32))
        until(lambda: made._queued == 32)
        closing = threading.Thread(target=made.close)
        closing.start()
        until(lambda: made._closed)
        program.hold.set()
        assert first.result(10)[0].tolist() == [[352, 11]]
        with pytest.raises(ServingError, match="stops"):
            second.result(10)
        closing.join()
    with pytest.raises(ServingError, match="stops"):
        made.submit(features([11]))
