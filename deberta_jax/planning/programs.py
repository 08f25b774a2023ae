"""Makes a request's program: the training step, or the forward pass of prediction, by the same code that runs it."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
from jax.sharding import Mesh

from deberta_jax.inference.predict import Predictor
from deberta_jax.models import HEADS, abstract_params, logical_axes
from deberta_jax.ops.attention.pallas.self_check import lower_kernel
from deberta_jax.planning.cards import Card, card_device
from deberta_jax.planning.costs import count
from deberta_jax.planning.hlo import parse_hlo
from deberta_jax.planning.request import Request
from deberta_jax.sharding import batch_sharding, make_mesh, tree_shardings
from deberta_jax.training.experiment import Finetune, PretrainMLM, PretrainRTD, model_runtime
from deberta_jax.training.finetune_model import finetune_objective
from deberta_jax.training.objective import Objective, PreparedStep, prepare_step
from deberta_jax.training.pretrain_objectives import generator_config, mlm_objective, rtd_objective
from deberta_jax.training.step import jit_step


@dataclasses.dataclass(frozen=True)
class MadeProgram:
    """Holds a jitted program that is not compiled yet.

    Attributes:
      program: the jitted function.
      arguments: its abstract arguments, with shardings.
      held: bytes of the arguments on one chip, by cause.
      mesh: the mesh to lower it with.
      card: the card of its devices, where they are cards that are not there.
      compiler_options: options for the compiler by name.
    """

    program: Any
    arguments: tuple[Any, Any]
    held: dict[str, int]
    mesh: Mesh
    card: Card | None = None
    compiler_options: Mapping[str, str | bool] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def compiled(self) -> Any:
        """Returns the compiled program. Raises jax.errors.JaxRuntimeError where the compiler refuses it."""
        described = self.mesh.abstract_mesh
        if self.card is not None:
            described = described.update(abstract_device=card_device(self.card))
        with jax.set_mesh(self.mesh), jax.sharding.use_abstract_mesh(described):
            return self.program.lower(*self.arguments).compile(compiler_options=dict(self.compiler_options))


def lower_for_cuda(request: Request, devices: Sequence[Any]) -> tuple[dict[str, int], float]:
    """Returns the bytes held on one device and the FLOPs of its matrix products, of the step lowered for CUDA.

    Devices are simulated. No compiler for a GPU is used, so temporary memory, traffic and collectives are not known.
    The step is lowered, and its FLOPs counted after XLA has compiled it for CPU devices, with ``xla`` attention: XLA
    divides the products among devices alike, and a kernel's own cannot be counted. A kernel is lowered by itself.

    Raises:
      InputError: a mesh that does not fit the devices or the model, or a kernel that cannot be lowered.
    """
    made = make_program(request, devices)
    if request.experiment.runtime.attention == "pallas":
        lower_kernel("gpu", request.experiment.dtype)
    counted = make_program(request.with_runtime(attention="xla"), devices)
    with jax.set_mesh(counted.mesh):
        jax.export.export(counted.program, platforms=["cuda"])(*counted.arguments)
    return made.held, count(parse_hlo(counted.compiled.as_text()), request.mesh).flops


def make_program(request: Request, devices: Sequence[Any]) -> MadeProgram:
    """Returns the request's program, for devices that need not be there.

    Raises:
      InputError: a mesh that does not fit the devices or the model.
    """
    mesh = request_mesh(request, devices)
    if request.job == "predict":
        program, arguments, held_bytes = _predict_program(request, mesh)
    else:
        prepared = prepared_of(request, mesh)
        program, batch = jit_step(prepared.step, prepared.shardings, shapes_of(request), mesh)
        arguments, held_bytes = (prepared.state, batch), held_by_state(prepared, request, mesh)
    # Options of the kind true or false are taken as such alone, not as text.
    truth = {"true": True, "false": False}
    options = {name: truth.get(value.lower(), value) for name, value in request.compiler_options}
    return MadeProgram(program, arguments, held_bytes, mesh, request.target.card, options)


def request_mesh(request: Request, devices: Sequence[Any]) -> Mesh:
    """Returns the request's mesh."""
    m = request.mesh
    return make_mesh(m["data"], m["fsdp"], m["tensor"], devices=devices)


def objective_of(request: Request) -> Objective:
    """Returns the objective of the request's run."""
    e = request.experiment
    if isinstance(e, PretrainMLM):
        return mlm_objective(e, request.config)[1]
    if isinstance(e, PretrainRTD):
        return rtd_objective(e, generator_config(request.config, e.generator_layers), request.config)[1]
    assert request.task is not None, "fine-tuning is towards a task"
    return finetune_objective(e, request.config, request.task)[1]


def prepared_of(request: Request, mesh: Mesh) -> PreparedStep:
    """Returns the step of the request's run."""
    return prepare_step(objective_of(request), mesh, request.steps, accumulate=request.experiment.runtime.accumulate)


def shapes_of(request: Request) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of the request's global batch."""
    return {name: jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)) for name, (shape, dtype) in request.batch.items()}


def held_by_state(prepared: PreparedStep, request: Request, mesh: Mesh) -> dict[str, int]:
    """Returns the bytes of one chip that state and batch take, by cause."""
    state, shardings = prepared.state, prepared.shardings
    return {
        "parameters": held(state.params, shardings.params) + held(state.ema_params, shardings.ema_params),
        "optimizer": held(state.opt_state, shardings.opt_state),
        "batch": held(shapes_of(request), {name: batch_sharding(mesh) for name in request.batch}),
    }


def held(shapes: Any, shardings: Any) -> int:
    """Returns the bytes of one chip's part of arrays."""
    pairs = zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True)
    return sum(math.prod(s.shard_shape(a.shape)) * a.dtype.itemsize for a, s in pairs)


def _predict_program(request: Request, mesh: Mesh) -> tuple[Any, tuple[Any, Any], dict[str, int]]:
    """Returns the forward pass of ``Predictor``, its arguments, and the bytes of one chip that they take."""
    e, task = request.experiment, request.task
    assert isinstance(e, Finetune)
    assert task is not None
    model = HEADS[task.head].model.create(task.configure(request.config), model_runtime(e))
    predictor = Predictor(
        model,
        request.config.pad_token_id,
        max_length=e.max_length,
        batch_size=e.batch_size,
        mesh=mesh,
    )
    shapes, shardings = abstract_params(model), tree_shardings(logical_axes(model), mesh)
    sharded = lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s)
    batch = {name: sharded(a, batch_sharding(mesh)) for name, a in shapes_of(request).items()}
    sizes = {"parameters": held(shapes, shardings), "optimizer": 0}
    sizes["batch"] = held(batch, {name: batch_sharding(mesh) for name in batch})
    return predictor.forward, (jax.tree.map(sharded, shapes, shardings), batch), sizes
