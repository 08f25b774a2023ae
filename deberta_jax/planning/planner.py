"""From a request to a plan, and from many to those that fit, the quickest first."""

from collections.abc import Callable, Sequence

from deberta_jax.errors import InputError
from deberta_jax.planning.compiling import compile_here
from deberta_jax.planning.report import Plan, plan_of
from deberta_jax.planning.request import Request, check_mesh
from deberta_jax.planning.sweep import Guess


def make_plan(request: Request, *, capacity: float = 0.0, tick: Callable[[], object] = lambda: None) -> Plan:
    """Compiles and counts.

    Raises:
      InputError: a mesh that does not divide, or what the compiler does not take.
    """
    check_mesh(request)
    return plan_of(request, compile_here(request, tick=tick), capacity=capacity)


def first_fit(guesses: Sequence[Guess], *, tick: Callable[[], object] = lambda: None) -> Plan:
    """The first guess that fits; where none does, the one that lacks least."""
    plans = []
    for guess in guesses:
        plans.append(make_plan(guess.request, tick=tick))
        if plans[-1].fits:
            return plans[-1]
    return min(plans, key=lambda plan: plan.needed)


def sweep(
    guesses: Sequence[Guess],
    *,
    capacity: float = 0.0,
    done: Callable[[], object] = lambda: None,
    tick: Callable[[], object] = lambda: None,
) -> tuple[list[Plan], list[tuple[Request, str]]]:
    """Plans of all, those that fit first and the quickest of them first; and those that do not compile, with why."""
    plans, failed = [], []
    for guess in guesses:
        try:
            plans.append(make_plan(guess.request, capacity=capacity, tick=tick))
        except InputError as error:
            failed.append((guess.request, str(error)))
        done()
    per_token = lambda plan: plan.seconds.get("step", 0.0) / plan.request.tokens
    return sorted(plans, key=lambda plan: (plan.fits is False, per_token(plan), plan.needed)), failed
