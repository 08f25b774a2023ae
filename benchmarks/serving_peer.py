"""The peer of ``serving.py``: FastAPI around transformers' pipeline, with the batching that its documentation advises.

One coroutine takes requests from a queue, waits a moment for others, and answers them in one call of the pipeline.

    python benchmarks/serving_peer.py MODEL PORT MAX_LENGTH
"""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from typing import Any

import transformers
import uvicorn
from fastapi import Body, FastAPI

BATCH, WAIT = 32, 0.002


def make_app(model: str, length: int) -> FastAPI:
    """Returns the application."""
    pipe = transformers.pipeline("text-classification", model, top_k=None, truncation=True, max_length=length)
    queue: asyncio.Queue[tuple[str, asyncio.Future[Any]]] = asyncio.Queue()

    async def work() -> None:
        while True:
            waiting = [await queue.get()]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WAIT):
                    while len(waiting) < BATCH:
                        waiting.append(await queue.get())
            # Texts of one length need the least padding.
            waiting.sort(key=lambda item: len(item[0]))
            texts = [text for text, _ in waiting]
            answers = await asyncio.to_thread(pipe, texts, batch_size=8)
            for (_, future), answer in zip(waiting, answers, strict=True):
                future.set_result(answer)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        worker = asyncio.create_task(work())
        yield
        worker.cancel()

    app = FastAPI(lifespan=lifespan)

    @app.get("/health")
    async def health() -> str:
        return "ready"

    @app.post("/predict")
    async def predict(inputs: str = Body(embed=True)) -> Any:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        await queue.put((inputs, future))
        return await future

    return app


if __name__ == "__main__":
    uvicorn.run(make_app(sys.argv[1], int(sys.argv[3])), host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
