"""Requests and answers as the platform modules see them, without any framework between."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import parse_qsl

import orjson


@dataclass
class Request:
    method: str
    path: str  # decoded
    raw_path: str  # as sent, with the query: what signatures are made of
    query_string: str
    headers: dict[str, str]
    body: bytes

    @cached_property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(self.query_string, keep_blank_values=True))

    @cached_property
    def form(self) -> dict[str, str]:
        """Query and form body together, the body winning."""
        body = self.body.decode("utf-8", "replace") if self.method == "POST" else ""
        return self.query | dict(parse_qsl(body, keep_blank_values=True))

    def json(self) -> Any:
        """The JSON body; raises ValueError."""
        return orjson.loads(self.body)


@dataclass
class Answer:
    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    content_type: str = "application/json;charset=UTF-8"


def json_answer(value: Any, status: int = 200, **headers: str) -> Answer:
    return Answer(orjson.dumps(value), status, headers)
