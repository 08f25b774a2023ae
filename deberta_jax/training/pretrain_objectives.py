"""Builds the objectives of pre-training: masked language modelling, and replaced-token detection with a generator.

DeBERTa v1 and v2 were trained by the first (He et al. 2021), v3 by the second (He et al. 2023). Nothing here reads
text, and weights are read only when parameters are asked for. So the step of a run can be compiled for devices that
are not there, with ``objective.prepare_step`` and ``objective.masked_batch``.
"""

import dataclasses
import functools
from typing import Any

import jax

from deberta_jax.config import DebertaConfig
from deberta_jax.errors import InputError, listed
from deberta_jax.models import DebertaForMaskedLM, DebertaForReplacedTokenDetection, Model, init_params
from deberta_jax.training.experiment import Pretraining, PretrainMLM, PretrainRTD, model_runtime
from deberta_jax.training.mlm import masked_lm_results
from deberta_jax.training.objective import Objective
from deberta_jax.training.optimizers import frozen_paths
from deberta_jax.training.resolve import resolve_config
from deberta_jax.training.rtd import RTDModels, with_embeddings
from deberta_jax.training.state import Parameters, parameters_of
from deberta_jax.training.step import Phase
from deberta_jax.weights import load
from deberta_jax.weights.choose import HeadRequest
from deberta_jax.weights.load import plan_head
from deberta_jax.weights.opening import Source, open_source


def masked_lm_config(e: PretrainMLM) -> DebertaConfig:
    """Returns the model's config with the head that the experiment names.

    Raises:
      InputError: weights of the other kind of head; rows longer than its table of absolute positions.
    """
    if e.from_scratch:
        config = dataclasses.replace(resolve_config(e), legacy=False)
        if e.head != "model":
            config = dataclasses.replace(config, mask_decoder=e.head == "mask-decoder")
        return with_positions(e, e.model, config)
    check_ignore(e, e.model)
    config = with_positions(e, e.model, weights_config(e, e.model, "masked-lm"))
    if e.head != "model" and config.mask_decoder != (e.head == "mask-decoder"):
        has = "a mask decoder" if config.mask_decoder else "a plain head"
        raise InputError(f"--head {e.head}: the weights of {e.model} have {has}")
    return config


def mlm_objective(e: PretrainMLM, config: DebertaConfig) -> tuple[DebertaForMaskedLM, Objective]:
    """Returns the model, and all that its training step is made of."""
    model = DebertaForMaskedLM.create(config, model_runtime(e))

    def loss(params, batch, key):
        found = masked_lm_results(model, params, batch, deterministic=False, rngs={"dropout": key})
        return {"task": (found.value, found.weight)}

    return model, Objective(
        configs=(config,),
        parameters=with_frozen(e, parameters_of(model)),
        initial_params=lambda shardings: initial_params(e, model, e.model, "masked-lm", e.seed, shardings),
        loss=loss,
        optimization=e.optimization,
    )


def rtd_configs(e: PretrainRTD) -> tuple[DebertaConfig, DebertaConfig]:
    """Returns the configs of generator and discriminator.

    Raises:
      InputError: two models that do not go together; rows longer than a table of absolute positions.
    """
    if e.from_scratch:
        discriminator = dataclasses.replace(resolve_config(e), legacy=False, mask_decoder=False)
        generator = generator_config(discriminator, e.generator_layers)
        return with_positions(e, f"the generator of {e.model}", generator), with_positions(e, e.model, discriminator)
    check_ignore(e, e.generator, e.model)
    generator = with_positions(e, e.generator, weights_config(e, e.generator, "masked-lm"))
    discriminator = with_positions(e, e.model, weights_config(e, e.model, "replaced-token-detection"))
    fields = ("vocab_size",) if e.sharing == "none" else ("vocab_size", "embedding_width", "max_position_embeddings")
    for name in fields:
        ours, theirs = getattr(generator, name), getattr(discriminator, name)
        if ours != theirs:
            raise InputError(f"--generator {e.generator}: its {name} is {ours}, that of {e.model} is {theirs}")
    return generator, discriminator


def with_positions(e: Pretraining, name: str, config: DebertaConfig) -> DebertaConfig:
    """Returns the config, after checking that it has a position for every token of a row.

    The model itself cannot check this: in a packed row positions begin at 0 with each text.

    Raises:
      InputError: rows longer than the table of absolute positions.
    """
    if config.has_position_table and e.max_length > config.max_position_embeddings:
        raise InputError(
            f"--max-length {e.max_length}: {name} has absolute positions for {config.max_position_embeddings} tokens "
            f"(max_position_embeddings); give --max-length {config.max_position_embeddings} or less"
        )
    return config


def generator_config(discriminator: DebertaConfig, layers: int = 0) -> DebertaConfig:
    """Returns the config of a generator for a discriminator.

    It has the same hidden size, ``layers`` layers or half as many as the discriminator (0), and the mask decoder unless
    absolute positions are added to the input already.
    """
    return dataclasses.replace(
        discriminator,
        num_hidden_layers=layers or max(1, discriminator.num_hidden_layers // 2),
        legacy=False,
        mask_decoder=not discriminator.position_biased_input,
    )


def rtd_objective(
    e: PretrainRTD, generator: DebertaConfig, discriminator: DebertaConfig
) -> tuple[RTDModels, Objective]:
    """Returns both models, and all that their training step is made of."""
    runtime = model_runtime(e)
    models = RTDModels(
        DebertaForMaskedLM.create(generator, runtime),
        DebertaForReplacedTokenDetection.create(discriminator, runtime),
        e.sharing,
    )

    def loss_of_generator(params, batch, key):
        items, sampled = models.generate(params, batch, key)
        return {"generator": items, "sampled": sampled}

    def loss_of_discriminator(params, batch, key):
        return {"discriminator": models.discriminate(params, batch, batch["sampled"], key)}

    def loss_of_both(params, batch, key):
        items, sampled = models.generate(params, batch, key)
        found = models.discriminate(params, batch, sampled, jax.random.fold_in(key, 1))
        return {"generator": items, "discriminator": found}

    phases = (
        Phase(loss=loss_of_generator, parts=("generator",), outputs=("sampled",)),
        Phase(loss=loss_of_discriminator, parts=("discriminator",)),
    )
    rate = e.discriminator_learning_rate or e.optimization.learning_rate
    separate = {"generator": e.optimization, "discriminator": dataclasses.replace(e.optimization, learning_rate=rate)}
    decoupled = e.update == "decoupled"
    return models, Objective(
        configs=(generator, discriminator),
        parameters=with_frozen(e, models.parameters()),
        initial_params=lambda shardings: initial_rtd_params(e, models, shardings),
        loss=phases if decoupled else loss_of_both,
        loss_weights={"discriminator": e.discriminator_weight},
        optimization=e.optimization,
        separate=separate if decoupled else {},
    )


def initial_rtd_params(e: PretrainRTD, models: RTDModels, shardings: Any) -> Any:
    """Returns the trained tree before the first step, by the tree of shardings.

    From scratch the models are initialized, with differences of zero. Otherwise the parameters are read, and the
    differences computed from the two models' tables.
    """
    own = dict(shardings["discriminator"])
    if e.sharing == "es":  # the tables in the discriminator's file are read and not used
        embeddings = shardings["generator"]["deberta"]["embeddings"]
        own = with_embeddings(own, {name: embeddings[name] for name in models.shared})
    head = "replaced-token-detection"
    generator = initial_params(e, models.generator, e.generator, "masked-lm", e.seed, shardings["generator"])
    discriminator = initial_params(e, models.discriminator, e.model, head, e.seed + 1, own)
    begin = functools.partial(models.trained_tree, zero_differences=e.from_scratch)
    return jax.jit(begin, out_shardings=shardings)(generator, discriminator)


def initial_params(e: Pretraining, model: Model, name: str, head: str, seed: int, shardings: Any) -> Any:
    """Returns a model's parameters by the tree of shardings: initialized with ``seed``, or read from ``name``."""
    if e.from_scratch:
        return jax.jit(lambda: init_params(model, jax.random.key(seed)), out_shardings=shardings)()
    patterns = matching_patterns(open_weights(e, name))
    runtime, base = model_runtime(e), base_of(e, name)
    return load(name, head, runtime, shardings=shardings, ignore=patterns, base_model=base, quantization="none")[1]


def weights_config(e: Pretraining, name: str, head: str) -> DebertaConfig:
    """Returns the config that a model's weights load with.

    Raises:
      InputError: the weights have no such head, or ``name`` is a preset, which has no weights.
    """
    if name == e.model:
        resolve_config(e)  # refuses a preset
    return plan_head(open_weights(e, name), HeadRequest(head)).config


def open_weights(e: Pretraining, name: str) -> Source:
    """Opens the weights of one of the models. A pattern of ``--ignore`` may belong to the other model's file."""
    return open_source(name, ignore=e.ignore, base_model=base_of(e, name), must_match=False)


def base_of(e: Pretraining, name: str) -> str | None:
    """Returns the base that the experiment gives for a model; None for the generator."""
    return e.base_model if name == e.model and e.base_model else None


def matching_patterns(source: Source) -> tuple[str, ...]:
    """Returns the patterns of ``--ignore`` that match a tensor of this file."""
    return tuple({pattern: None for patterns in source.ignored.values() for pattern in patterns})


def check_ignore(e: Pretraining, *names: str) -> None:
    """Raises InputError where a pattern of ``--ignore`` matches no tensor of any of these models."""
    if not e.ignore:
        return
    used = {pattern for name in names for pattern in matching_patterns(open_weights(e, name))}
    idle = [pattern for pattern in e.ignore if pattern not in used]
    if idle:
        raise InputError(f"--ignore {listed(idle)}: matches no tensor of {' or '.join(names)}")


def with_frozen(e: Pretraining, parameters: Parameters) -> Parameters:
    """Returns the parameters with those marked as frozen that the experiment freezes."""
    return dataclasses.replace(parameters, frozen=frozen_paths(e.optimization, parameters.shapes))
