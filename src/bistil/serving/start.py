"""From a model's name to a server."""

import logging
from pathlib import Path
from typing import Any

from bistil.errors import InputError, MissingExtraError
from bistil.prediction.loading import load
from bistil.serving.settings import TOKEN, Limits, read_token

logger = logging.getLogger(__name__)

LOOPBACK = ("127.", "::1", "localhost")


def require_server() -> None:
    """Make sure that the extra is installed.

    Raises:
        MissingExtraError: it is not.
    """
    try:
        import fastapi
        import prometheus_client
        import uvicorn
    except ImportError as error:
        raise MissingExtraError(
            "a server needs FastAPI, uvicorn and prometheus-client: pip install 'bistil[serve]'"
        ) from error
    del fastapi, prometheus_client, uvicorn


def serve(
    model: str,
    *,
    teacher: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    token_file: Path | None = None,
    limits: Limits | None = None,
    **how: Any,
) -> int:
    """Serve a finished model over HTTP until SIGTERM or SIGINT.

    Args:
        model: the folder of a task model or an exported one, or a name on the hub.
        teacher: another one for the same task, to be compared with on the page.
        host: address to listen at.
        port: 0: any that is free.
        token_file: holds the token that requests must bring; None: the environment's `BISTIL_SERVE_TOKEN`, if any.
        how: options of `prediction.load`.

    Returns:
        The number of requests that were in flight and could not be answered in time; 0 is as it should be.

    Raises:
        InputError: there is no such model, address or token, the port is in use, or the teacher is for another task.
        ArtefactError: a model is damaged or none of a task.
        MissingExtraError: the extra, or a model's engine, is not installed.
    """
    require_server()
    from bistil.serving.app import make_app
    from bistil.serving.server import open_socket, serve_until_stopped

    limits, token = limits or Limits(), read_token(token_file)
    # Before a model is loaded, which takes seconds.
    opened = open_socket(host, port)
    try:
        predictors = {"model": load(model, **how)}
        if teacher is not None:
            predictors["teacher"] = load(teacher, **how)
            kinds = [one.task.kind for one in predictors.values()]
            if len(set(kinds)) > 1:
                raise InputError(f"{model} is for {kinds[0]} and {teacher} for {kinds[1]}: they cannot be compared")
        if token is None and not host.startswith(LOOPBACK):
            logger.warning(
                f"whoever reaches {host} may ask the model: --token-file or {TOKEN} lets in those with a token alone"
            )
        names = {"model": Path(model).resolve().name, "teacher": Path(teacher or "").resolve().name}
        app = make_app(predictors["model"], teacher=predictors.get("teacher"), names=names, limits=limits, token=token)
        return serve_until_stopped(app, opened, limits)
    finally:
        opened.close()
