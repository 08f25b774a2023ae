"""``deberta-jax prepare``: tokenizes text into a directory of shards for pre-training."""

import dataclasses
from typing import Annotated

import tyro
from tqdm import tqdm

from deberta_jax import hub
from deberta_jax.data.documents import CorpusOptions
from deberta_jax.data.prepare import SHARD_TOKENS, Prepare, PrepareProgress, prepare
from deberta_jax.progress import progress_bar, update_of
from deberta_jax.text import load_tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args(CorpusOptions):
    """Tokenizes text, jsonl and parquet files into a directory of shards for ``pretrain --train``.

    If it is stopped, even by kill -9, the same command continues and writes the same bytes. When it has finished, the
    same command compares every shard with its hash. The number of processes changes only the time."""

    tokenizer: Annotated[str, tyro.conf.arg(aliases=["--model"])]
    """Directory or hub id with the tokenizer's files."""
    input: tuple[str, ...]
    """Files, or patterns such as part-*.jsonl: .txt, .jsonl (also with .gz or .zst) and .parquet, local or gs://."""
    output: str
    """Directory to write, on a local disk."""
    workers: int = 0
    """Processes that tokenize; 0: one for each core."""
    shard_tokens: int = SHARD_TOKENS
    """Tokens of a shard; an interruption loses at most the work on one shard."""


def run(args: Args) -> None:
    """Prepares the text, and prints what the directory holds."""
    options = Prepare(
        inputs=args.input,
        output=args.output,
        source=CorpusOptions(documents=args.documents, text=args.text),
        shard_tokens=args.shard_tokens,
        workers=args.workers,
    )
    options.check()
    tokenizer = load_tokenizer(hub.resolve(args.tokenizer, files=hub.TEXT_FILES))
    # The delay: input that is refused at once gets its line without an empty bar above it.
    with progress_bar(unit="B", unit_scale=True, desc="preparing", mininterval=0.5, delay=0.5) as bar:
        manifest = prepare(options, tokenizer, _progress_of(bar))
    print(
        f"{args.output}: {manifest['documents']} documents, {manifest['tokens']} tokens in {len(manifest['shards'])} "
        f"shards of {manifest['dtype']}"
    )


def _progress_of(bar: tqdm) -> PrepareProgress:
    update = update_of(bar)

    def progress(read: int, total: int, documents: int, tokens: int) -> None:
        bar.set_postfix_str(f"{documents} documents, {tokens / 1e6:.1f}M tokens", refresh=False)
        update(read, total)

    return progress
