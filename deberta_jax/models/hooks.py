"""Reads and changes the outputs of a model's modules, by path, also inside the loop over layers.

The loop runs one layer's code for all layers, so what it computes cannot be reached from outside. ``capture`` and
``patch`` intercept the calls of modules while the model is traced, and return the values of each layer from the loop.
"""

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from deberta_jax.errors import InputError, brief, did_you_mean, shown
from deberta_jax.models.attention import SelfAttention
from deberta_jax.models.base import Model, Output, Params
from deberta_jax.models.encoder import Encoder, Layer

_WEIGHTS = ("deberta", "encoder", "layers", "*", "attention", "self", "weights")

Edit = Callable[..., jax.Array]


def capture(
    model: Model[Output],
    params: Params,
    *args: Any,
    at: str | Sequence[str],
    edits: Mapping[str, Edit] | None = None,
    rngs: dict[str, jax.Array] | None = None,
    **inputs: Any,
) -> tuple[Output, dict[str, jax.Array]]:
    """Runs a model and returns outputs of its modules by path, such as ``deberta/encoder/layers/3/attention``.

    Paths are those of the parameter tree, with the number of the layer, from 0, after ``layers``. A pattern is matched
    as ``pathlib.PurePath.match`` does: from the right, ``*`` for any name. Useful ones, with the shapes of the values:

        embeddings                         [B,T,D]     the input of the first layer
        layers/*                           [B,T,D]     the output of each layer
        layers/*/attention                 [B,T,D]     attention with its residual and LayerNorm
        layers/*/attention/self            [B,T,N,H]   the context of each head
        layers/*/attention/self/query_proj [B,T,N,H]   and key_proj, value_proj
        layers/*/attention/self/pos_key    [R,N,H]     the projected relative table; and pos_query
        layers/*/attention/self/weights    [B,N,T,T]   attention weights before dropout; not for ``edits``
        layers/*/intermediate              [B,T,F]     the feed-forward block before its second dense layer

    The function may be called inside ``jax.jit``, ``jax.grad`` and other transformations. The values of all layers of a
    path are in memory, even if one is asked for. Nothing is recomputed to save memory: ``remat`` is ignored.

    Args:
      model: a model with any head.
      params: its parameters.
      args, inputs: the arguments of the model's call.
      at: patterns of the paths to return.
      edits: changes made on the way, as for ``patch``.
      rngs: as in ``model.apply``: ``{"dropout": key}`` for ``deterministic=False``.

    Returns:
      The model's output, and the values by path. The last layer of an enhanced mask decoder runs twice; its second run
      is returned.

    Raises:
      InputError: a pattern that matches no module; an edit that changes the shape or dtype of a value.
    """
    if not isinstance(model, Model):
        raise InputError(f"the first argument is a {type(model).__name__}; give a model, then its parameters")
    patterns = _patterns(at, edits or {})
    recorder = _Recorder(model.config.num_hidden_layers, patterns, dict(edits or {}))
    wants_weights = bool(recorder.matching(_WEIGHTS, patterns))
    shown = inputs.get("output_attentions", False)
    inputs["output_attentions"] = shown or wants_weights
    with nn.intercept_methods(recorder):
        output: Any = model.clone(remat="none")(params, *args, rngs=rngs, **inputs)
    recorder.check_all_matched()
    if wants_weights and not shown:
        output = dataclasses.replace(output, attentions=None)
    return output, recorder.values


def _patterns(at: Any, edits: Any) -> tuple[str, ...]:
    """Returns the patterns of the paths to return. Raises InputError for what is no pattern, or no edit."""
    found = (at,) if isinstance(at, str) else tuple(at) if isinstance(at, Sequence | set | frozenset) else (at,)
    if not isinstance(edits, Mapping):
        raise InputError(f"edits is a {type(edits).__name__}; give a dict from patterns of paths to functions")
    for pattern in (*found, *edits):
        if not isinstance(pattern, str) or pattern.strip("./") == "":
            raise InputError(f"{shown(pattern)} is no pattern of paths; give a str such as 'layers/*/attention'")
    for pattern, edit in edits.items():
        try:
            inspect.signature(edit).bind(None, layer=None)
        except TypeError:
            raise InputError(
                f"edits: {brief(pattern)!r}: give a function (value, *, layer) -> value, not {shown(edit)}"
            ) from None
        except ValueError:
            pass  # a function of C, without a signature
    return found


def patch(
    model: Model[Output],
    params: Params,
    *args: Any,
    edits: Mapping[str, Edit],
    rngs: dict[str, jax.Array] | None = None,
    **inputs: Any,
) -> Output:
    """Runs a model with the outputs of some of its modules changed, and returns its output.

    This sets head 2 of the fourth layer to zero:

        patch(model, params, ids, edits={"layers/3/attention/self": lambda x, *, layer: x.at[:, :, 2].set(0)})

    Args:
      edits: from a pattern, as ``at`` of ``capture``, to a function ``(value, *, layer) -> value`` that keeps shape and
        dtype. ``layer`` counts from 0; it is an array inside the loop over layers, and None outside.
      model, params, args, rngs, inputs: as for ``capture``.

    Raises:
      InputError: as ``capture``.
    """
    return capture(model, params, *args, at=(), edits=edits, rngs=rngs, **inputs)[0]


class _Recorder:
    """Intercepts calls of modules: edits and keeps their outputs.

    Attributes:
      values: what was kept, by path.
      seen: the paths of all values.
      matched: the patterns that have matched a value that they can be used for.
      kept: while the body of the loop is traced, the values to return from it, by path with ``*`` for the layer.
      layer: inside a layer, its number: an int, or an array in the loop; None outside.
      passes: whether modules are neither edited nor kept.
    """

    def __init__(self, layers: int, patterns: Sequence[str], edits: Mapping[str, Edit]):
        self.layers, self.patterns, self.edits = layers, patterns, edits
        self.values: dict[str, jax.Array] = {}
        self.seen: set[str] = set()
        self.matched: set[str] = set()
        self.kept: dict[tuple[str, ...], jax.Array] | None = None
        self.encoder: tuple[str, ...] = ()
        self.layer: Any = None
        self.passes = False

    def __call__(self, call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module, method = context.module, context.method_name
        if isinstance(module, Encoder):
            self.encoder = module.path
            if method == Encoder.iterate.__name__:
                return self.loop(call, *args)
            if method == Encoder.layer_output.__name__:
                with self.inside(args[1]):
                    return self.visit(self.path(), call(*args, **kwargs))
        if isinstance(module, SelfAttention) and method == SelfAttention.position_tables.__name__:
            return self.tables(module, lambda: call(*args, **kwargs))
        if method != "__call__" or self.passes or isinstance(module, Model):
            return call(*args, **kwargs)
        if isinstance(module, Layer):
            with self.inside(args[2].layer):
                return call(*args, **kwargs)
        result = call(*args, **kwargs)
        if isinstance(module, SelfAttention) and result[1] is not None:
            self.keep(self.path(module, "weights"), result[1])
        return self.visit(self.path(module), result)

    @contextlib.contextmanager
    def inside(self, layer: Any) -> Iterator[None]:
        """Sets the number of the layer for its block."""
        self.layer = layer
        try:
            yield
        finally:
            self.layer = None

    def path(self, module: nn.Module | None = None, *names: str) -> tuple[str, ...]:
        """Returns the path of a module, and of names below it; of a layer itself without a module."""
        inner = () if module is None else module.path
        return (*inner, *names) if self.layer is None else (*self.encoder, "layers", "*", *inner, *names)

    def tables(self, module: nn.Module, project: Callable[[], Any]) -> tuple[jax.Array | None, ...]:
        """Visits the projected relative tables. The same modules may project queries and keys, so these are not."""
        self.passes = True
        try:
            tables = dict(zip(("pos_key", "pos_query"), project(), strict=True))
        finally:
            self.passes = False
        return tuple(table if table is None else self.visit(self.path(module, n), table) for n, table in tables.items())

    def loop(self, call: Callable[..., Any], body: Callable[..., Any], carry: Any, xs: Any) -> Any:
        """Runs the loop over layers with a body that also returns what is kept of its layer."""

        def keeping(carry, xs):
            self.kept = {}
            carry, y = body(carry, xs)
            kept, self.kept = self.kept, None
            return carry, (y, kept)

        carry, (y, kept) = call(keeping, carry, xs)
        for path, stacked in kept.items():
            for layer in self.matching(path, self.patterns):
                self.values["/".join(_numbered(path, layer))] = stacked[layer]
        return carry, y

    def visit(self, path: tuple[str, ...], result: Any) -> Any:
        """Edits and keeps the output of a module; of a tuple, its first array."""
        first, *rest = result if isinstance(result, tuple) else (result,)
        if not path or not isinstance(first, jax.Array):
            return result
        first = self.keep(path, self.edited(path, first))
        return (first, *rest) if isinstance(result, tuple) else first

    def keep(self, path: tuple[str, ...], value: jax.Array) -> jax.Array:
        """Keeps a value if a pattern matches its path, and returns it."""
        self.seen |= {"/".join(_numbered(path, layer)) for layer in (range(self.layers) if "*" in path else (None,))}
        self.matched |= {pattern for pattern in self.patterns if self.matching(path, (pattern,))}
        layers = self.matching(path, self.patterns)
        if layers and self.kept is not None:
            self.kept[path] = value
        elif self.layer in layers:
            self.values["/".join(_numbered(path, self.layer))] = value
        return value

    def edited(self, path: tuple[str, ...], value: jax.Array) -> jax.Array:
        """Returns the value after all edits whose pattern matches its path."""
        for pattern, edit in self.edits.items():
            chosen = self.matching(path, (pattern,))
            if not chosen:
                continue
            self.matched.add(pattern)

            def change(value: jax.Array, edit: Edit = edit) -> jax.Array:
                changed = jnp.asarray(edit(value, layer=self.layer))
                if (changed.shape, changed.dtype) != (value.shape, value.dtype):
                    raise InputError(
                        f"the edit of {'/'.join(path)} returned {changed.dtype}{list(changed.shape)}; the value is "
                        f"{value.dtype}{list(value.shape)}"
                    )
                return changed

            if self.layer is None or len(chosen) == self.layers:
                value = change(value)
            else:
                value = jax.lax.cond(jnp.isin(self.layer, jnp.asarray(chosen)), change, lambda value: value, value)
        return value

    def matching(self, path: tuple[str, ...], patterns: Sequence[str]) -> list[Any]:
        """Returns the layers for which some pattern matches a path; of a path outside the layers, [None] or []."""
        layers = range(self.layers) if "*" in path else (None,)
        return [
            layer
            for layer in layers
            if any(PurePosixPath(*_numbered(path, layer)).match(pattern) for pattern in patterns)
        ]

    def check_all_matched(self) -> None:
        """Raises InputError for a pattern that has matched no path."""
        for pattern in (*self.patterns, *self.edits):
            if pattern in self.matched:
                continue
            if PurePosixPath(pattern).name == "weights":
                raise InputError(f"edits: {brief(pattern)!r}: weights cannot be changed; scores can, by score_modifier")
            count = len(PurePosixPath(pattern).parts)
            ends = sorted({"/".join(path.split("/")[-count:]) for path in self.seen})
            hint = did_you_mean(pattern, ends) or "; capture(..., at='*') returns all that there are"
            raise InputError(f"no module of the model matches {brief(pattern)!r}{hint}")


def _numbered(path: tuple[str, ...], layer: int | None) -> tuple[str, ...]:
    """Returns a path with the number of the layer in place of ``*``."""
    return tuple(str(layer) if part == "*" else part for part in path)
