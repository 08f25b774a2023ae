"""Makes a plan of a request, and ranks the plans of many candidates."""

from collections.abc import Callable, Sequence

from deberta_jax.errors import InputError
from deberta_jax.planning.candidates import Candidate
from deberta_jax.planning.compiling import compile_here
from deberta_jax.planning.report import Plan, plan_of
from deberta_jax.planning.request import Request, check_mesh


def make_plan(request: Request, *, capacity: float = 0.0, tick: Callable[[], object] = lambda: None) -> Plan:
    """Compiles a request and counts what its program needs.

    Args:
      capacity: bytes of a device's memory, where the target is no known chip.
      tick: called every second while the compiler runs.

    Raises:
      InputError: a mesh that does not divide the model or the batch, or a program that the compiler does not take.
    """
    check_mesh(request)
    return plan_of(request, compile_here(request, tick=tick), capacity=capacity)


def rank_candidates(
    found: Sequence[Candidate],
    *,
    capacity: float = 0.0,
    done: Callable[[], object] = lambda: None,
    tick: Callable[[], object] = lambda: None,
) -> tuple[list[Plan], list[tuple[Request, str]]]:
    """Makes a plan of every candidate.

    Args:
      capacity, tick: as ``make_plan`` has them.
      done: called after each candidate.

    Returns:
      The plans: those that fit first, of those the least time a token first. And the requests that do not compile, each
      with the reason.
    """
    plans, failed = [], []
    for candidate in found:
        try:
            plans.append(make_plan(candidate.request, capacity=capacity, tick=tick))
        except InputError as error:
            failed.append((candidate.request, str(error)))
        done()
    per_token = lambda plan: plan.seconds.get("step", 0.0) / plan.request.tokens
    return sorted(plans, key=lambda plan: (plan.fits is False, per_token(plan), plan.needed)), failed
