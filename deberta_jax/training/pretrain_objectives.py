"""The objectives of pre-training: masked language modelling, and replaced-token detection with a generator.

DeBERTa v1 and v2 were trained by the first (He et al. 2021), v3 by the second (He et al. 2023). Nothing here reads
text, and no weights are read until parameters are asked for: with ``objective.prepare`` and
``objective.masked_batch`` the very step of a run compiles for devices that are not there.
"""

import dataclasses
import functools
from typing import Any

import jax

from deberta_jax.config import DebertaConfig
from deberta_jax.errors import InputError, listed
from deberta_jax.models import DebertaForMaskedLM, DebertaForReplacedTokenDetection, Model, init_params
from deberta_jax.training.experiment import Pretraining, PretrainMLM, PretrainRTD, model_runtime
from deberta_jax.training.objective import Objective
from deberta_jax.training.optimizers import frozen_paths
from deberta_jax.training.pair import Pair, masked_lm_scores, with_embeddings
from deberta_jax.training.resolve import resolve_config
from deberta_jax.training.state import Parameters, parameters_of
from deberta_jax.training.step import Phase
from deberta_jax.weights import load
from deberta_jax.weights.choose import Wish
from deberta_jax.weights.load import plan_head
from deberta_jax.weights.opening import Source, open_source


def masked_lm_config(e: PretrainMLM) -> DebertaConfig:
    """The architecture with the head that the experiment names.

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
    """The model, and all that its training step is made of; reads no text, and no weights until parameters are asked
    for. With ``objective.prepare`` and ``objective.masked_batch`` the step compiles."""
    model = DebertaForMaskedLM(config, **model_runtime(e))

    def loss(params, batch, key):
        found = masked_lm_scores(model, params, batch, deterministic=False, rngs={"dropout": key})
        return {"task": (found.value, found.weight)}

    return model, Objective(
        configs=(config,),
        parameters=with_frozen(e, parameters_of(model)),
        initial_params=lambda shardings: initial(e, model, e.model, "masked-lm", e.seed, shardings),
        loss=loss,
        optimization=e.optimization,
    )


def rtd_configs(e: PretrainRTD) -> tuple[DebertaConfig, DebertaConfig]:
    """The architectures of generator and discriminator.

    Raises:
      InputError: two that do not go together; rows longer than a table of absolute positions.
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
    """The architecture, if it has a position for every token of the longest text that a row may hold. A packed row's
    positions begin anew with each text, so the model itself cannot tell."""
    if config.has_position_table and e.max_length > config.max_position_embeddings:
        raise InputError(
            f"--max-length {e.max_length}: {name} has absolute positions for {config.max_position_embeddings} tokens "
            f"(max_position_embeddings); give --max-length {config.max_position_embeddings} or less"
        )
    return config


def generator_config(discriminator: DebertaConfig, layers: int = 0) -> DebertaConfig:
    """A generator beside a discriminator: of the same width, half as deep by default, with the mask decoder where
    positions are not added to the input already."""
    return dataclasses.replace(
        discriminator,
        num_hidden_layers=layers or max(1, discriminator.num_hidden_layers // 2),
        legacy=False,
        mask_decoder=not discriminator.position_biased_input,
    )


def rtd_objective(e: PretrainRTD, generator: DebertaConfig, discriminator: DebertaConfig) -> tuple[Pair, Objective]:
    """Both models, and all that their training step is made of; reads no text, and no weights until parameters are
    asked for. With ``objective.prepare`` and ``objective.masked_batch`` the step compiles."""
    runtime = model_runtime(e)
    pair = Pair(
        DebertaForMaskedLM(generator, **runtime), DebertaForReplacedTokenDetection(discriminator, **runtime), e.sharing
    )

    def loss_of_generator(params, batch, key):
        items, drawn = pair.generate(params, batch, key)
        return {"generator": items, "drawn": drawn}

    def loss_of_discriminator(params, batch, key):
        return {"discriminator": pair.discriminate(params, batch, batch["drawn"], key)}

    def loss_of_both(params, batch, key):
        items, drawn = pair.generate(params, batch, key)
        found = pair.discriminate(params, batch, drawn, jax.random.fold_in(key, 1))
        return {"generator": items, "discriminator": found}

    phases = (
        Phase(loss=loss_of_generator, trains=("generator",), gives=("drawn",)),
        Phase(loss=loss_of_discriminator, trains=("discriminator",)),
    )
    rate = e.discriminator_learning_rate or e.optimization.learning_rate
    separate = {"generator": e.optimization, "discriminator": dataclasses.replace(e.optimization, learning_rate=rate)}
    decoupled = e.update == "decoupled"
    return pair, Objective(
        configs=(generator, discriminator),
        parameters=with_frozen(e, pair.parameters()),
        initial_params=lambda shardings: initial_pair(e, pair, shardings),
        loss=phases if decoupled else loss_of_both,
        factors={"discriminator": e.discriminator_weight},
        optimization=e.optimization,
        separate=separate if decoupled else {},
    )


def initial_pair(e: PretrainRTD, pair: Pair, shardings: Any) -> Any:
    """Fresh parameters, differences zero; or those of two models, the differences recovered from them."""
    places = dict(shardings["discriminator"])
    if e.sharing == "es":  # the tables of the discriminator's file are read and left
        embeddings = shardings["generator"]["deberta"]["embeddings"]
        places = with_embeddings(places, {name: embeddings[name] for name in pair.shared})
    head = "replaced-token-detection"
    generator = initial(e, pair.generator, e.generator, "masked-lm", e.seed, shardings["generator"])
    discriminator = initial(e, pair.discriminator, e.model, head, e.seed + 1, places)
    begin = functools.partial(pair.differences, fresh=e.from_scratch)
    return jax.jit(begin, out_shardings=shardings)(generator, discriminator)


def initial(e: Pretraining, model: Model, name: str, head: str, seed: int, shardings: Any) -> Any:
    """Parameters where the shardings say: fresh, or those of a model directory."""
    if e.from_scratch:
        return jax.jit(lambda: init_params(model, jax.random.key(seed)), out_shardings=shardings)()
    patterns = matching_patterns(open_weights(e, name))
    return load(name, head, shardings=shardings, ignore=patterns, base_model=base_of(e, name), **model_runtime(e))[1]


def weights_config(e: Pretraining, name: str, head: str) -> DebertaConfig:
    """The architecture that weights load as. Raises InputError where they have no such head."""
    if name == e.model:
        resolve_config(e)  # refuses the name of an architecture that has no weights
    return plan_head(open_weights(e, name), Wish(head)).config


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
    return dataclasses.replace(parameters, frozen=frozen_paths(e.optimization, parameters.shapes))
