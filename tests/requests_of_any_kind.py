"""Requests that schemathesis makes of a server's own OpenAPI document: right ones, and wrong ones of every sort."""

from collections.abc import Iterator
from typing import Any

import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, given, seed, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance


def ask_anything(app: FastAPI, examples: int, *, number: int = 0) -> Iterator[tuple[str, int, Exception | None]]:
    """Ask each endpoint: its path, how many requests, and what was wrong with an answer.

    None may be a server's error (500 and above), and each must be as the document has it.

    Args:
        examples: of each endpoint.
        number: the seed.
    """
    for operation in (one.ok() for one in schemathesis.openapi.from_asgi("/openapi.json", app).get_all_operations()):
        asked, wrong = 0, None

        @seed(number)
        @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def ask(case: Any) -> None:
            nonlocal asked
            asked += 1
            case.call_and_validate(checks=[not_a_server_error, response_schema_conformance])

        try:
            ask()
        except Exception as error:
            wrong = error
        yield operation.path, asked, wrong
