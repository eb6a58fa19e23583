"""Every request that the newest official client can make has an address here, and all that is in it a reader.

Asked of the client's generated code, so that a newer one shows what it has learnt.
"""

from __future__ import annotations

import inspect
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any, get_args

import pytest
from e2b.api.client import api as generated
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from pydantic import BaseModel

from wardian.api import e2b

UNREAD = {("GET", "/templates"): {"teamID"}, ("GET", "/v2/templates"): {"teamID"}}
"""What docs/e2b.md says is not read."""


@dataclass(frozen=True)
class Request:
    """One call of the generated client, as its source has it."""

    module: ModuleType

    @property
    def source(self) -> str:
        return inspect.getsource(self.module._get_kwargs)

    @property
    def address(self) -> tuple[str, str]:
        method = re.findall(r'"method": "(\w+)"', self.source)[0]
        return method.upper(), shape(re.findall(r'"url": f?"([^"]+)"', self.source)[0])

    @property
    def query(self) -> set[str]:
        return set(re.findall(r'params\["(\w+)"\]', self.source))

    @property
    def options(self) -> set[str]:
        """The keys of its JSON body."""
        told = inspect.signature(self.module._get_kwargs).parameters.get("body")
        if told is None:
            return set()
        kinds = [kind for kind in (*get_args(told.annotation), told.annotation) if hasattr(kind, "to_dict")]
        return {key for kind in kinds for key in _keys(kind)}


def _keys(kind: Any) -> set[str]:
    source = inspect.getsource(kind.to_dict)
    required = re.search(r"field_dict\.update\(\s*\{(.*?)\}", source, re.DOTALL)
    keys = re.findall(r'field_dict\["(\w+)"\]', source)
    return {*keys, *(re.findall(r'"(\w+)":', required[1]) if required else ())}


def shape(path: str) -> str:
    return re.sub(r"\{[^}]*\}", "{}", path)


def requests() -> Iterator[Request]:
    for found in pkgutil.walk_packages(generated.__path__, f"{generated.__name__}."):
        if not found.ispkg:
            yield Request(import_module(found.name))


@cache
def routes() -> dict[tuple[str, str], APIRoute]:
    modules = (import_module(f"{e2b.__name__}.{found.name}") for found in pkgutil.iter_modules(e2b.__path__))
    routers = [module.router for module in modules if hasattr(module, "router")]
    known = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    return {(method, shape(route.path)): route for route in known for method in route.methods or ()}


def read(dependant: Dependant) -> set[str]:
    """The query parameters that a route, and what it depends on, looks at."""
    own = {field.alias for field in dependant.query_params}
    return own.union(*(read(further) for further in dependant.dependencies))


def taken(dependant: Dependant) -> set[str]:
    """The keys of a body that a route knows; any other is refused."""
    kinds = [kind for field in dependant.body_params for kind in _models(field.field_info.annotation)]
    return {name for kind in kinds for name in kind.model_fields}


def _models(annotation: Any) -> list[type[BaseModel]]:
    candidates = (*get_args(annotation), annotation)
    return [kind for kind in candidates if isinstance(kind, type) and issubclass(kind, BaseModel)]


@pytest.mark.parametrize("request_made", list(requests()), ids=lambda made: " ".join(made.address))
def test_what_the_client_sends_is_served(request_made: Request) -> None:
    route = routes().get(request_made.address)
    assert route is not None, "no such address"
    assert request_made.query - read(route.dependant) == UNREAD.get(request_made.address, set())
    assert request_made.options - taken(route.dependant) == set()
