"""``deberta-jax prepare``."""

import dataclasses
import sys
from typing import Annotated

import tyro
from tqdm import tqdm

from deberta_jax import hub
from deberta_jax.data.documents import Source
from deberta_jax.data.prepare import SHARD_TOKENS, Prepare, prepare
from deberta_jax.errors import InputError
from deberta_jax.text import load_tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args(Source):
    """Turn text, jsonl and parquet into a directory of token shards for ``pretrain --train``.

    Stopped in any way, even by kill -9, the same command goes on where it was, to the same bytes; run again after its
    end it compares every shard with its hash. How many processes there are changes nothing but the time."""

    tokenizer: Annotated[str, tyro.conf.arg(aliases=["--model"])]
    """Directory or hub id with the tokenizer's files."""
    input: tuple[str, ...]
    """Files, or patterns such as part-*.jsonl: .txt, .jsonl (also with .gz or .zst) and .parquet, local or gs://."""
    output: str
    """Directory to write, on a local disk."""
    workers: int = 0
    """Processes that tokenise; 0: one for each core."""
    shard_tokens: int = SHARD_TOKENS
    """Tokens in a shard: what an interruption can cost."""


def run(args: Args) -> None:
    if not args.input:
        raise InputError("--input: give a file or a pattern")
    if args.workers < 0:
        raise InputError(f"--workers {args.workers}: must be at least 0")
    if args.shard_tokens < 1:
        raise InputError(f"--shard-tokens {args.shard_tokens}: must be at least 1")
    tokenizer = load_tokenizer(hub.resolve(args.tokenizer, files=hub.TEXT_FILES))
    options = Prepare(
        inputs=args.input,
        output=args.output,
        source=Source(documents=args.documents, text=args.text),
        shard_tokens=args.shard_tokens,
        workers=args.workers,
    )
    # delay: input that is refused at once gets its line without an empty bar above it
    bar = tqdm(unit="B", unit_scale=True, desc="preparing", file=sys.stderr, mininterval=0.5, delay=0.5)
    with bar:

        def progress(read: int, total: int, documents: int, tokens: int) -> None:
            bar.total = total
            bar.set_postfix_str(f"{documents} documents, {tokens / 1e6:.1f}M tokens", refresh=False)
            bar.update(max(0, read - bar.n))

        manifest = prepare(options, tokenizer, progress)
    print(
        f"{args.output}: {manifest['documents']} documents, {manifest['tokens']} tokens in {len(manifest['shards'])} "
        f"shards of {manifest['dtype']}"
    )
