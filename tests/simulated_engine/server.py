"""`vllm serve` of a simulated world: an OpenAI-compatible streaming server whose steps take what the world says.

It reads vLLM's own options from its command line, with autotune's own reader of commands.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import shlex
import sys
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from autotune.auditing.commands import read_command
from autotune.documents.deployment import Deployment, Load
from autotune.serving.building import build_service
from autotune.serving.service import PoolModel
from autotune.serving.traffic import requests_of
from autotune.tuning.outcomes import TrialFailed
from cost_models.specs.workload import Workload
from tests.simulated_engine.world import Distortions, Refusals, distorted

WORLD = "SIMULATED_WORLD"
"""Environment variable that names the world's file."""


@dataclass
class Answer:
    """One request on its way."""

    prompt_tokens: int
    answer_tokens: int
    left: int
    """Prompt tokens to be computed."""
    given: int = 0
    tokens: asyncio.Queue[bool] = field(default_factory=asyncio.Queue)
    """One entry per token; False ends it."""


@dataclass
class Engine:
    """Continuous batching with chunked prompts, a step at a time."""

    pool: PoolModel
    refusals: Refusals
    waiting: deque[Answer] = field(default_factory=deque)
    prefilling: list[Answer] = field(default_factory=list)
    running: list[Answer] = field(default_factory=list)
    come: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, answer: Answer) -> None:
        self.waiting.append(answer)
        self.come.set()

    async def run(self) -> None:
        free_at = time.monotonic()
        while True:
            if not (self.waiting or self.prefilling or self.running):
                self.come.clear()
                await self.come.wait()
                free_at = time.monotonic()
            pieces = self._compose()
            free_at = max(free_at + self._step_s(pieces), time.monotonic() - 0.05)
            await asyncio.sleep(max(free_at - time.monotonic(), 0))
            self._finish(pieces)

    def _compose(self) -> list[tuple[Answer, int]]:
        ranks = self.pool.ranks
        budget = self.pool.budget_tokens * ranks - len(self.running)
        while self.waiting and len(self.running) + len(self.prefilling) < self.pool.slots * ranks:
            self.prefilling.append(self.waiting.popleft())
        pieces = []
        for answer in self.prefilling:
            taken = int(min(answer.left, budget))
            if taken <= 0:
                break
            pieces.append((answer, taken))
            budget -= taken
        self.refusals.under_load((len(self.running) + len(self.prefilling)) / ranks)
        return pieces

    def _step_s(self, pieces: list[tuple[Answer, int]]) -> float:
        ranks = self.pool.ranks
        decodes = math.ceil(len(self.running) / ranks)
        if not pieces:
            return self.pool.decode_s(max(decodes, 1))
        tokens = sum(taken for _, taken in pieces) / ranks + decodes
        keys = sum(taken * (a.prompt_tokens - a.left + taken / 2) for a, taken in pieces) / ranks
        return self.pool.prompt_s(tokens, tokens, keys, decodes)

    def _finish(self, pieces: list[tuple[Answer, int]]) -> None:
        ready = []
        for answer, taken in pieces:
            answer.left -= taken
            if answer.left <= 0:
                self.prefilling.remove(answer)
                ready.append(answer)
        self.running += ready
        for answer in list(self.running):
            answer.given += 1
            answer.tokens.put_nowait(True)
            if answer.given >= answer.answer_tokens:
                answer.tokens.put_nowait(False)
                self.running.remove(answer)


def application(engine: Engine, name: str, healthy: bool, characters: float) -> Starlette:
    """The routes that load generators use; characters : of a token, in prompts that come as text."""

    async def health(_: Request) -> Response:
        return Response(status_code=200 if healthy else 503)

    async def models(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": name, "object": "model", "owned_by": "simulated"}]})

    async def completions(request: Request) -> Response:
        body = await request.json()
        prompt = body.get("prompt") or " ".join(_text(message.get("content")) for message in body.get("messages", []))
        count = len(prompt) if isinstance(prompt, list) else max(round(len(str(prompt)) / characters), 1)
        most = int(body.get("max_tokens") or body.get("max_completion_tokens") or 16)
        answer = Answer(count, most, count)
        engine.add(answer)
        return StreamingResponse(_events(answer, body, chat="chat" in request.url.path), media_type="text/event-stream")

    routes = [
        Route("/health", health),
        Route("/v1/models", models),
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/chat/completions", completions, methods=["POST"]),
    ]
    return Starlette(routes=routes)


def _text(content: Any) -> str:
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in content)
    return str(content)


async def _events(answer: Answer, body: dict[str, Any], chat: bool) -> AsyncIterator[bytes]:
    shared = {"id": "simulated", "model": body.get("model"), "object": "text_completion", "created": 0}
    while await answer.tokens.get():
        piece = {"index": 0, "finish_reason": None, **({"delta": {"content": " w"}} if chat else {"text": " w"})}
        yield b"data: " + json.dumps({**shared, "choices": [piece]}).encode() + b"\n\n"
    usage = {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.given}
    yield b"data: " + json.dumps({**shared, "choices": [], "usage": usage}).encode() + b"\n\n"
    yield b"data: [DONE]\n\n"


def deployment_of(arguments: list[str], world: dict[str, Any]) -> Deployment:
    """What a command line starts, as autotune reads it."""
    workload = Workload.model_validate(world["workload"])
    read = read_command(
        shlex.join(["vllm", "serve", *arguments]),
        hardware=world["hardware"],
        version=world.get("version"),
        isl_tokens=workload.isl_tokens,
        osl_tokens=workload.osl_tokens,
        load=Load(concurrency=64),
        model=world["model"],
        precision=world["precision"],
    )
    return read.deployment.model_copy(update={"workload": workload})


def serve(arguments: list[str]) -> None:
    """Run until killed."""
    world = json.loads(Path(os.environ[WORLD]).read_text())
    if unknown := [word for word in arguments if word.startswith("--no-such")]:
        sys.exit(f"vllm serve: error: unrecognized arguments: {' '.join(unknown)}")
    distortions = Distortions.of(world["distortions"])
    deployment = deployment_of(arguments, world)
    pool = deployment.pools["serve"]
    refusals = Refusals(distortions)
    healthy = True
    try:
        refusals.at_start(pool)
    except TrialFailed as failure:
        if failure.reason != "never_healthy":
            sys.exit(failure.detail)
        healthy = False
    assert deployment.load is not None
    built = build_service(deployment, requests_of(deployment.workload, deployment.load, 1))
    engine = Engine(distorted(pool, built.model, distortions).decode, refusals)
    value = {name: arguments[arguments.index(name) + 1] for name in ("--port", "--served-model-name") if name in arguments}
    app = application(engine, value.get("--served-model-name", arguments[0]), healthy, world.get("characters_per_token", 4.0))
    asyncio.run(_both(app, engine, int(value.get("--port", "8000"))))


async def _both(app: Starlette, engine: Engine, port: int) -> None:
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
    steps = asyncio.create_task(engine.run())
    steps.add_done_callback(_died)
    await server.serve()


def _died(steps: asyncio.Task[None]) -> None:
    """An engine that dies takes its server with it, as vLLM's does."""
    if not steps.cancelled() and (error := steps.exception()):
        sys.stderr.write(f"{error}\n")
        sys.stderr.flush()
        os._exit(1)
