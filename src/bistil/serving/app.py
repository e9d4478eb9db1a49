"""The application: paths, their answers and the page."""

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from bistil._version import __version__
from bistil.errors import InputError
from bistil.prediction.inputs import Input
from bistil.prediction.predictor import Predictor
from bistil.runtime.documents import parse_json
from bistil.serving.batching import Answered, Batcher, QueueFullError
from bistil.serving.guard import FAILED, GONE, Guard
from bistil.serving.metrics import ServerMetrics
from bistil.serving.schema import Answers, Health, Problem, as_given, reads, request_model, wanted_of
from bistil.serving.settings import Limits

PAGE = {
    "/": ("page.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
    "/page.svg": ("page.svg", "image/svg+xml"),
}
MOST_PROBLEMS = 10
"""That are told of a request that does not fit."""


class _JsonRequest(Request):
    """A request whose JSON has the limits of all JSON that is read."""

    async def json(self) -> Any:
        body = await self.body()
        try:
            # As bytes it might be UTF-16.
            return parse_json(body.decode())
        except json.JSONDecodeError:
            raise
        except UnicodeDecodeError as error:
            raise HTTPException(400, f"the body is not UTF-8 (byte 0x{body[error.start]:02x})") from error
        except ValueError as error:
            raise HTTPException(400, f"the body: {error}") from error


class _JsonRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(_JsonRequest(request.scope, request.receive))

        return handle


def make_app(
    model: Predictor,
    *,
    teacher: Predictor | None = None,
    names: Mapping[str, str] | None = None,
    limits: Limits | None = None,
    token: str | None = None,
) -> Guard:
    """The application for a model.

    Args:
        teacher: what it is compared with on the page, and asked at /teacher/predict.
        names: what to call them, by "model" and "teacher".
        token: that requests for predictions and metrics must bring; None: none.

    Returns:
        An ASGI application, whose `batcher` is to be closed.
    """
    limits, names = limits or Limits(), dict(names or {})
    roles = {"model": model} if teacher is None else {"model": model, "teacher": teacher}
    called = {role: names.get(role, role) for role in roles}
    metrics = ServerMetrics(called, model.task.kind)
    role_of = {id(one): role for role, one in roles.items()}
    batcher = Batcher(
        batch=limits.batch,
        waiting=limits.waiting,
        observe=lambda one, inputs, seconds: metrics.observe_batch(role_of[id(one)], inputs, seconds),
    )
    metrics.waiting.set_function(lambda: batcher.waiting)
    app = FastAPI(
        title=f"bistil: {called['model']}",
        version=__version__,
        summary=f"A model for {model.task.kind}.",
        # Their pages come from elsewhere.
        docs_url=None,
        redoc_url=None,
    )
    app.router.route_class = _JsonRoute
    app.add_exception_handler(RequestValidationError, _told)
    app.add_exception_handler(Exception, _failed)

    @app.get("/health")
    async def health() -> Health:
        """What is served; answers as soon as the model can be asked."""
        return Health(
            status="ok",
            model=called["model"],
            task=model.task.kind,
            reads=reads(model),
            teacher=called.get("teacher"),
            token=token is not None,
            version=__version__,
        )

    @app.get("/metrics", response_class=Response, responses=_RESPONSES_OF_METRICS)
    async def counts() -> Response:
        """Counters in the text format of Prometheus."""
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    for role, predictor in roles.items():
        _add_predict(
            app, "/predict" if role == "model" else f"/{role}/predict", predictor, called[role], batcher, limits
        )
    for path in PAGE:
        _add_file(app, path)
    paths = frozenset({"/openapi.json", *app.openapi()["paths"], *PAGE})
    return Guard(app, batcher=batcher, limits=limits, metrics=metrics, paths=paths, token=token)


_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": why}
    for status, why in {
        400: "No JSON that is read.",
        401: "A token is needed.",
        408: "The body did not come in time.",
        413: "The body is too large.",
        422: "Not what the model reads.",
        503: "As many requests wait as may: try again after Retry-After seconds.",
    }.items()
}
_RESPONSES_OF_METRICS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
    401: _PROBLEMS[401],
}


def _add_predict(app: FastAPI, path: str, predictor: Predictor, name: str, batcher: Batcher, limits: Limits) -> None:
    model: type[BaseModel] = request_model(predictor, limits)

    async def predict(request: Request, asked: model) -> JSONResponse:  # type: ignore[valid-type]
        """What the model says of each input."""
        try:
            wanted = wanted_of(asked)
            inputs = [predictor.asked(as_given(item)) for item in asked.inputs]  # type: ignore[attr-defined]
            _check_lengths(inputs, limits.characters)
            predictor.check_wanted(wanted)
            found = await _answered(request, batcher, predictor, inputs, wanted)
        except InputError as error:
            raise HTTPException(422, str(error)) from error
        except QueueFullError as full:
            detail = f"{limits.waiting:,} requests wait already: try again in {full.seconds} s"
            raise HTTPException(503, detail, headers={"Retry-After": str(full.seconds)}) from full
        answer = {
            "predictions": found.records,
            "model": name,
            "seconds": round(found.seconds, 6),
            "together": found.together,
        }
        return _Json(answer)

    app.post(path, response_model=Answers, responses=_PROBLEMS)(predict)


class _Json(JSONResponse):
    """JSON as `bistil predict` writes it."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=False, default=str).encode()


async def _answered(
    request: Request, batcher: Batcher, predictor: Predictor, inputs: Sequence[Input], wanted: Any
) -> Answered:
    """What the model says, as soon as it was asked; nothing is computed for a client that has gone before its turn."""
    future: asyncio.Future[Any] = asyncio.wrap_future(batcher.submit(predictor, inputs, wanted))
    gone: asyncio.Future[Any] = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait([future, gone], return_when=asyncio.FIRST_COMPLETED)
        if not future.done():
            raise HTTPException(GONE, "the client has closed the connection")
        found: Answered = future.result()
        return found
    finally:
        gone.cancel()
        future.cancel()
        with suppress(asyncio.CancelledError):
            await gone


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _check_lengths(inputs: Sequence[Input], most: int) -> None:
    for number, one in enumerate(inputs, 1):
        if (length := len(one.text) + len(one.second or "")) > most:
            raise InputError(f"input {number} has {length:,} characters, and {most:,} are read: split it")


async def _told(request: Request, error: Exception) -> JSONResponse:
    """What does not fit, without what was sent."""
    del request
    assert isinstance(error, RequestValidationError)
    problems = [{key: one[key] for key in ("type", "loc", "msg")} for one in error.errors()[:MOST_PROBLEMS]]
    return JSONResponse({"detail": problems}, 422)


async def _failed(request: Request, error: Exception) -> JSONResponse:
    """What went wrong is for the log."""
    del request, error
    return JSONResponse({"detail": FAILED}, 500)


def _add_file(app: FastAPI, path: str) -> None:
    name, kind = PAGE[path]
    content = (files("bistil.serving") / name).read_bytes()

    async def file() -> Response:
        return Response(content, media_type=kind)

    app.get(path, include_in_schema=False)(file)
