"""What pre-training computes of its models: a masked language model's scores, and replaced-token detection's pair."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from deberta_jax.models import DebertaForMaskedLM, DebertaForReplacedTokenDetection
from deberta_jax.ops.losses import Items, replaced_token_loss
from deberta_jax.ops.vocabulary import Scores, vocabulary_scores
from deberta_jax.training.state import Parameters, parameters_of

INPUTS = ("input_ids", "attention_mask", "segment_ids", "positions")
_TABLES = ("word_embeddings", "position_embeddings")


def masked_lm_scores(
    model: DebertaForMaskedLM,
    params: Any,
    batch: Mapping[str, jax.Array],
    uniform: jax.Array | None = None,
    **options: Any,
) -> Scores:
    """Every target's loss, and with ``uniform`` a drawn word, without the logits of all."""
    inputs = {name: batch[name] for name in INPUTS if name in batch}
    out = model.apply({"params": params}, **inputs, factored=True, **options)  # pyright: ignore
    return vocabulary_scores(out.states, out.table, out.bias, batch["labels"], uniform=uniform)  # pyright: ignore


def real_tokens(batch: Mapping[str, jax.Array]) -> jax.Array:
    """True [B,T] where a row has a token: of ``segment_ids`` or ``attention_mask``, or all."""
    for name in ("segment_ids", "attention_mask"):
        if name in batch:
            return batch[name] != 0
    return jnp.ones(batch["input_ids"].shape, bool)


@dataclasses.dataclass(frozen=True)
class Pair:
    """Generator and discriminator, and what they share: ``gdes``, ``es`` or ``none``."""

    generator: DebertaForMaskedLM
    discriminator: DebertaForReplacedTokenDetection
    sharing: str

    @property
    def shared(self) -> tuple[str, ...]:
        """The discriminator's tables that are the generator's, or begin with them."""
        if self.sharing == "none":
            return ()
        both = self.generator.config.has_position_table and self.discriminator.config.has_position_table
        return _TABLES if both else _TABLES[:1]

    def parameters(self) -> Parameters:
        """Shapes and axes of the trained tree; with ``es`` the discriminator's tables are not in it."""
        generator, discriminator = parameters_of(self.generator), parameters_of(self.discriminator)
        return Parameters(
            {"generator": generator.shapes, "discriminator": self._trained(discriminator.shapes)},
            {"generator": generator.axes, "discriminator": self._trained(discriminator.axes)},
        )

    def differences(self, generator: Any, discriminator: Any, *, fresh: bool = False) -> Any:
        """The trained tree of two models: the discriminator's tables less the generator's, or zeros if fresh."""
        if self.sharing == "gdes":
            mine, theirs = discriminator["deberta"]["embeddings"], generator["deberta"]["embeddings"]
            less = lambda a, b: jnp.zeros_like(a) if fresh else a - b
            tables = {name: jax.tree.map(less, mine[name], theirs[name]) for name in self.shared}
            discriminator = with_embeddings(discriminator, tables)
        return {"generator": generator, "discriminator": self._trained(discriminator)}

    def _trained(self, discriminator: Any) -> Any:
        if self.sharing != "es":
            return discriminator
        embeddings = discriminator["deberta"]["embeddings"]
        kept = {name: table for name, table in embeddings.items() if name not in self.shared}
        return {**discriminator, "deberta": {**discriminator["deberta"], "embeddings": kept}}

    def discriminator_params(self, params: Any) -> Any:
        """The discriminator's own parameters, its tables whole."""
        theirs, mine = (params[name]["deberta"]["embeddings"] for name in ("generator", "discriminator"))
        if self.sharing == "gdes":
            add = lambda base, difference: jax.lax.stop_gradient(base) + difference
            tables = {name: jax.tree.map(add, theirs[name], mine[name]) for name in self.shared}
        else:
            tables = {name: theirs[name] for name in self.shared}
        return with_embeddings(params["discriminator"], tables)

    def generate(self, params: Any, batch: Mapping[str, jax.Array], key: jax.Array) -> tuple[Items, jax.Array]:
        """The generator's loss, and the words [B,P] that it draws at the targets.

        What is drawn follows from each row's own ``draws``, and so not from the micro-batches that a batch is computed
        in; ``key`` is dropout's.
        """
        width = batch["labels"].shape[1:]
        of_row = lambda data: jax.random.uniform(jax.random.wrap_key_data(data, impl="threefry2x32"), width)
        found = masked_lm_scores(
            self.generator,
            params["generator"],
            batch,
            jax.vmap(of_row)(batch["draws"]),
            deterministic=False,
            rngs={"dropout": jax.random.fold_in(key, 0)},
        )
        assert found.drawn is not None
        return (found.value, found.weight), found.drawn

    def discriminate(self, params: Any, batch: Mapping[str, jax.Array], drawn: jax.Array, key: jax.Array) -> Items:
        """The discriminator's loss of every real token."""
        ids, labels = replace_tokens(batch, drawn)
        logits = self.judge(self.discriminator_params(params), batch, ids, deterministic=False, rngs={"dropout": key})
        return replaced_token_loss(logits, labels)

    def judge(self, params: Any, batch: Mapping[str, jax.Array], ids: jax.Array, **options: Any) -> jax.Array:
        """The discriminator's logits [B,T] of a batch with these ids in the place of its own."""
        inputs = {name: batch[name] for name in ("attention_mask", "segment_ids") if name in batch}
        return self.discriminator.apply({"params": params}, ids, **inputs, **options).logits  # pyright: ignore


def replace_tokens(batch: Mapping[str, jax.Array], drawn: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What the discriminator reads [B,T], the drawn words at the targets; and its labels [B,T]: 1 where that is another
    word than the text has, 0 where not, -1 for padding."""
    ids, positions, labels = batch["input_ids"], batch["positions"], batch["labels"]
    there = jnp.where(labels >= 0, positions, ids.shape[1])  # beyond the row: dropped
    rows = jnp.arange(ids.shape[0])[:, None]
    put = lambda x, values: x.at[rows, there].set(values.astype(x.dtype), mode="drop")
    replaced = put(jnp.zeros_like(ids), drawn != labels)
    return put(ids, drawn), jnp.where(real_tokens(batch), replaced, -1)


def with_embeddings(params: Any, tables: Mapping[str, Any]) -> Any:
    embeddings = {**params["deberta"]["embeddings"], **tables}
    return {**params, "deberta": {**params["deberta"], "embeddings": embeddings}}
