"""Replaced-token detection (He et al. 2023): the generator, the discriminator, and the embeddings that they share.

The trained tree is ``{"generator": ..., "discriminator": ...}``. What the discriminator's part of it holds depends on
the sharing: see ``RTDModels``.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from deberta_jax.models import DebertaForMaskedLM, DebertaForReplacedTokenDetection
from deberta_jax.ops.losses import Items, replaced_token_loss
from deberta_jax.training.mlm import masked_lm_results
from deberta_jax.training.state import Parameters, parameters_of

_TABLES = ("word_embeddings", "position_embeddings")


@dataclasses.dataclass(frozen=True)
class RTDModels:
    """Holds generator and discriminator, and how they share embedding tables.

    Attributes:
      sharing: ``gdes`` (gradient-disentangled embedding sharing): the discriminator's tables are the generator's,
        without a gradient to those, plus differences, which are what its part of the trained tree holds. ``es``: they
        are the generator's, and not in its part. ``none``: each model has its own.
    """

    generator: DebertaForMaskedLM
    discriminator: DebertaForReplacedTokenDetection
    sharing: Literal["gdes", "es", "none"]

    @property
    def shared(self) -> tuple[str, ...]:
        """Returns the names of the embedding tables that both models share."""
        if self.sharing == "none":
            return ()
        both = self.generator.config.has_position_table and self.discriminator.config.has_position_table
        return _TABLES if both else _TABLES[:1]

    def parameters(self) -> Parameters:
        """Returns shapes and axes of the trained tree."""
        generator, discriminator = parameters_of(self.generator), parameters_of(self.discriminator)
        return Parameters(
            {"generator": generator.shapes, "discriminator": self._without_shared(discriminator.shapes)},
            {"generator": generator.axes, "discriminator": self._without_shared(discriminator.axes)},
        )

    def trained_tree(self, generator: Any, discriminator: Any, *, zero_differences: bool = False) -> Any:
        """Returns the trained tree of two models' parameters.

        With ``gdes`` the differences are the discriminator's tables minus the generator's, or zeros.
        """
        if self.sharing == "gdes":
            own, base = discriminator["deberta"]["embeddings"], generator["deberta"]["embeddings"]
            subtract = lambda a, b: jnp.zeros_like(a) if zero_differences else a - b
            tables = {name: jax.tree.map(subtract, own[name], base[name]) for name in self.shared}
            discriminator = with_embeddings(discriminator, tables)
        return {"generator": generator, "discriminator": self._without_shared(discriminator)}

    def _without_shared(self, discriminator: Any) -> Any:
        if self.sharing != "es":
            return discriminator
        embeddings = discriminator["deberta"]["embeddings"]
        kept = {name: table for name, table in embeddings.items() if name not in self.shared}
        return {**discriminator, "deberta": {**discriminator["deberta"], "embeddings": kept}}

    def discriminator_params(self, params: Any) -> Any:
        """Returns the discriminator's parameters with whole tables, from the trained tree."""
        base, own = (params[name]["deberta"]["embeddings"] for name in ("generator", "discriminator"))
        if self.sharing == "gdes":
            add = lambda table, difference: jax.lax.stop_gradient(table) + difference
            tables = {name: jax.tree.map(add, base[name], own[name]) for name in self.shared}
        else:
            tables = {name: base[name] for name in self.shared}
        return with_embeddings(params["discriminator"], tables)

    def generate(self, params: Any, batch: Mapping[str, jax.Array], key: jax.Array) -> tuple[Items, jax.Array]:
        """Returns the generator's loss of every target [B,P], and the token int32 [B,P] that it samples there.

        The samples depend on each row's own ``draws`` alone, so they are the same for any number of micro-batches;
        ``key`` is for dropout.
        """
        size = batch["labels"].shape[1:]
        of_row = lambda data: jax.random.uniform(jax.random.wrap_key_data(data, impl="threefry2x32"), size)
        found = masked_lm_results(
            self.generator,
            params["generator"],
            batch,
            jax.vmap(of_row)(batch["draws"]),
            deterministic=False,
            rngs={"dropout": jax.random.fold_in(key, 0)},
        )
        assert found.sampled is not None
        return (found.value, found.weight), found.sampled

    def discriminate(self, params: Any, batch: Mapping[str, jax.Array], sampled: jax.Array, key: jax.Array) -> Items:
        """Returns the discriminator's loss of every token [B,T], where the targets hold the sampled tokens [B,P]."""
        ids, labels = replace_tokens(batch, sampled)
        params = self.discriminator_params(params)
        logits = self.discriminator_logits(params, batch, ids, deterministic=False, rngs={"dropout": key})
        return replaced_token_loss(logits, labels)

    def discriminator_logits(
        self, params: Any, batch: Mapping[str, jax.Array], ids: jax.Array, **options: Any
    ) -> jax.Array:
        """Returns the discriminator's logits [B,T] for the batch with ``ids`` [B,T] as its tokens.

        Args:
          params: the discriminator's parameters, its tables whole.
          options: keyword arguments of the model, such as ``deterministic``.
        """
        inputs = {name: batch[name] for name in ("attention_mask", "segment_ids") if name in batch}
        return self.discriminator.apply({"params": params}, ids, **inputs, **options).logits  # pyright: ignore


def replace_tokens(batch: Mapping[str, jax.Array], sampled: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the discriminator's input and its labels.

    Args:
      sampled: int32 [B,P], the generator's token for each target.

    Returns:
      ids int32 [B,T], the batch's with the sampled tokens at the targets; labels int32 [B,T], 1 where that changed the
      token of the text, 0 where it did not, -1 for padding.
    """
    ids, positions, labels = batch["input_ids"], batch["positions"], batch["labels"]
    targets = jnp.where(labels >= 0, positions, ids.shape[1])  # an index beyond the row is dropped
    rows = jnp.arange(ids.shape[0])[:, None]
    put = lambda x, values: x.at[rows, targets].set(values.astype(x.dtype), mode="drop")
    replaced = put(jnp.zeros_like(ids), sampled != labels)
    return put(ids, sampled), jnp.where(token_mask(batch), replaced, -1)


def token_mask(batch: Mapping[str, jax.Array]) -> jax.Array:
    """Returns bool [B,T], False for padding, from ``segment_ids`` or ``attention_mask``; True where it has neither."""
    for name in ("segment_ids", "attention_mask"):
        if name in batch:
            return batch[name] != 0
    return jnp.ones(batch["input_ids"].shape, bool)


def with_embeddings(params: Any, tables: Mapping[str, Any]) -> Any:
    """Returns the parameters with some embedding tables replaced."""
    embeddings = {**params["deberta"]["embeddings"], **tables}
    return {**params, "deberta": {**params["deberta"], "embeddings": embeddings}}
