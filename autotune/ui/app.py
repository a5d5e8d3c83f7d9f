"""The app: its pages, what they ask, and the server under them."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from autotune.assistant.tools import Workbench
from autotune.errors import ProblemError
from autotune.report.asking_services import explain_run
from autotune.report.page.comparing import render_comparison
from autotune.report.page.folder import read_page
from autotune.report.page.page import render_page
from autotune.ui.exporting import FORMATS, zipped
from autotune.ui.form import choices, form_schema, problem_of
from autotune.ui.guard import REPORT_POLICY, Guard
from autotune.ui.history import listed, problem_in
from autotune.ui.searches import Searches, sayable
from cost_models.errors import AutotuneError
from cost_models.reading import parse_json

ADDRESS = "127.0.0.1"
TOKEN_BYTES = 24
LONGEST_FORM_BYTES = 64 * 1024
MOST_COMPARED = 8
STATIC = Path(__file__).parent / "static"


def listening(port: int) -> socket.socket:
    """A socket on the loopback interface; 0 takes a free port. Raises ProblemError where the port is taken."""
    place = socket.socket()
    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        place.bind((ADDRESS, port))
        place.listen()
    except (OSError, OverflowError) as error:
        place.close()
        reason = getattr(error, "strerror", None) or "no such port"
        raise ProblemError(f"cannot listen on port {port}: {reason}; --port 0 takes a free one") from error
    return place


def new_token() -> str:
    """What a link needs beside the port."""
    return secrets.token_urlsafe(TOKEN_BYTES)


def serve_pages(runs: Path, place: socket.socket, token: str) -> None:
    """Answer on a listening socket until interrupted; searches that still run are ended."""
    app = build_app(runs, token, place.getsockname()[1])
    config = uvicorn.Config(app, log_level="error", access_log=False, ws="none", server_header=False, timeout_graceful_shutdown=2)
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[place])


def build_app(runs: Path, token: str, port: int, at_once: int | None = None) -> Starlette:
    """The application; at_once : searches that run beside each other, half of the processors by default."""
    pages = Pages(Workbench(runs), Searches(runs, max(1, (os.cpu_count() or 2) // 2) if at_once is None else at_once))

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await pages.searches.close()

    inside = [
        Route("/", pages.start),
        Route("/form", pages.form),
        Route("/searches", pages.listed_searches),
        Route("/searches", pages.search, methods=["POST"]),
        Route("/searches/{key}", pages.cancel, methods=["DELETE"]),
        Route("/runs", pages.history),
        Route("/runs/{run}", pages.report),
        Route("/runs/{run}/problem", pages.problem),
        Route("/runs/{run}/why", pages.why),
        Route("/runs/{run}/export", pages.export),
        Route("/compare", pages.compare),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]
    return Starlette(
        routes=[Mount(f"/{token}", routes=inside)],
        middleware=[Middleware(Guard, token=token, port=port)],
        exception_handlers={AutotuneError: _told, HTTPException: _refused, Exception: _at_fault},
        lifespan=lifespan,
    )


async def _told(_: Request, error: Exception) -> Response:
    return PlainTextResponse(sayable(str(error)), 400)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return PlainTextResponse(f"nothing here answers that ({error.detail})", error.status_code)


async def _at_fault(_: Request, error: Exception) -> Response:
    what = sayable(" ".join(f"{type(error).__name__}: {error}".split())[:300])
    return PlainTextResponse(f"a fault of autotune's own, please report it ({what})", 500)


class Pages:
    """What every address answers; what reads files does so in a thread, what touches searches in the loop."""

    def __init__(self, bench: Workbench, searches: Searches) -> None:
        self.bench, self.searches = bench, searches

    def start(self, _: Request) -> Response:
        return FileResponse(STATIC / "index.html")

    def form(self, _: Request) -> Response:
        return JSONResponse({"schema": form_schema(), "choices": choices(), "formats": FORMATS})

    async def listed_searches(self, _: Request) -> Response:
        return JSONResponse([job.shown() for job in self.searches.jobs.values()][::-1])

    async def search(self, request: Request) -> Response:
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > LONGEST_FORM_BYTES:
                raise ProblemError(f"a form of more than {LONGEST_FORM_BYTES:,} bytes: no problem needs so many")
        return JSONResponse(self.searches.start(problem_of(parse_json(bytes(body), "form"))).shown(), 201)

    async def cancel(self, request: Request) -> Response:
        return JSONResponse(self.searches.cancel(request.path_params["key"]).shown())

    def history(self, request: Request) -> Response:
        skipped = request.query_params.get("skipped", "0")
        return JSONResponse(listed(self.bench, int(skipped) if skipped.isascii() and skipped.isdecimal() else 0))

    def report(self, request: Request) -> Response:
        return _page(render_page(read_page(self.bench.folder(request.path_params["run"]))))

    def problem(self, request: Request) -> Response:
        return JSONResponse(problem_in(self.bench, request.path_params["run"]))

    def why(self, request: Request) -> Response:
        found = explain_run(read_page(self.bench.folder(request.path_params["run"])), request.query_params.get("layout", ""))
        return PlainTextResponse(found.text)

    def compare(self, request: Request) -> Response:
        runs = request.query_params.getlist("run")
        if not 2 <= len(runs) <= MOST_COMPARED:
            raise ProblemError(f"compare takes 2 to {MOST_COMPARED} runs, not {len(runs)}")
        return _page(render_comparison([read_page(self.bench.folder(run)) for run in runs]))

    def export(self, request: Request) -> Response:
        asked, run = request.query_params, request.path_params["run"]
        rank = asked.get("rank", "1")
        name, content = zipped(self.bench.folder(run), rank, asked.get("format", "bash"), asked.get("router_image") or None)
        return Response(content, media_type="application/zip", headers={"Content-Disposition": f'attachment; filename="{name}"'})


def _page(html: str) -> Response:
    return HTMLResponse(html, headers={"Content-Security-Policy": REPORT_POLICY})
