"""OpenAPI 3.1 from pydantic models: each operation is declared once, as data.

The document is what `document` makes of the declarations; nothing is guessed from code.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

OPENAPI: Final = "3.1.1"
JSON: Final = "application/json"
REFERENCE: Final = "#/components/schemas/{model}"

# Where the schema of a model stands in the document.
Schemas = Mapping[type[Any], Any]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter outside the body; `schema` is JSON Schema. Those of a path are required."""

    name: str
    where: Literal["path", "query", "header"]
    description: str
    schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "string"})
    example: Any = None


@dataclass(frozen=True, slots=True)
class Body:
    """What a request or an answer carries; `examples` by their summary."""

    model: type[BaseModel] | None
    examples: Mapping[str, Any] = field(default_factory=dict)
    media_type: str = JSON


@dataclass(frozen=True, slots=True)
class Response:
    """What comes back with one status; `headers` by name with their description."""

    description: str
    body: Body | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Operation:
    """One method on one path. `id` is its name in generated clients."""

    id: str
    method: Literal["get", "post", "patch", "delete"]
    path: str
    tag: str
    summary: str
    answers: Mapping[int, Response]
    description: str = ""
    parameters: Sequence[Parameter] = ()
    body: Body | None = None
    secured: bool = True


@dataclass(frozen=True, slots=True)
class Description:
    """What the document says of the whole. `schemes` are the ways to say who calls; any will do."""

    title: str
    version: str
    text: str
    tags: Mapping[str, str]
    schemes: Mapping[str, Mapping[str, Any]]


def document(operations: Iterable[Operation], about: Description) -> dict[str, Any]:
    """The OpenAPI document of these operations."""
    listed = tuple(operations)
    incoming = {op.body.model for op in listed if op.body and op.body.model}
    outgoing = {
        answer.body.model
        for op in listed
        for answer in op.answers.values()
        if answer.body and answer.body.model
    }
    # A model that goes both ways is described as it comes in: then its defaults are optional.
    modes: list[tuple[type[BaseModel], Literal["validation", "serialization"]]] = [
        *((model, "validation") for model in sorted(incoming, key=_name)),
        *((model, "serialization") for model in sorted(outgoing - incoming, key=_name)),
    ]
    references, definitions = models_json_schema(modes, ref_template=REFERENCE)
    schemas: Schemas = {model: reference for (model, _), reference in references.items()}
    paths: dict[str, dict[str, Any]] = {}
    for operation in listed:
        paths.setdefault(operation.path, {})[operation.method] = _operation(
            operation, schemas, about
        )
    return {
        "openapi": OPENAPI,
        "info": {"title": about.title, "version": about.version, "description": about.text},
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": text} for name, text in about.tags.items()],
        "paths": paths,
        "components": {
            "schemas": definitions.get("$defs", {}),
            "securitySchemes": {name: dict(scheme) for name, scheme in about.schemes.items()},
        },
    }


def _name(model: type[BaseModel]) -> str:
    return model.__name__


def _operation(operation: Operation, schemas: Schemas, about: Description) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation.id,
        "tags": [operation.tag],
        "summary": operation.summary,
        "parameters": [_parameter(parameter) for parameter in operation.parameters],
        "responses": {
            str(status): _answer(answer, schemas) for status, answer in operation.answers.items()
        },
        # Any of the schemes, or none: who calls without is the anonymous client.
        "security": [{}, *({name: []} for name in about.schemes)] if operation.secured else [],
    }
    if operation.description:
        described["description"] = operation.description
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": _content(operation.body, schemas)}
    return described


def _parameter(parameter: Parameter) -> dict[str, Any]:
    described: dict[str, Any] = {
        "name": parameter.name,
        "in": parameter.where,
        "description": parameter.description,
        "required": parameter.where == "path",
        "schema": dict(parameter.schema),
    }
    if parameter.example is not None:
        described["example"] = parameter.example
    return described


def _answer(answer: Response, schemas: Schemas) -> dict[str, Any]:
    described: dict[str, Any] = {"description": answer.description}
    if answer.headers:
        described["headers"] = {
            name: {"description": text, "schema": {"type": "string"}}
            for name, text in answer.headers.items()
        }
    if answer.body is not None:
        described["content"] = _content(answer.body, schemas)
    return described


def _content(body: Body, schemas: Schemas) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": schemas[body.model] if body.model else {}}
    if body.examples:
        content["examples"] = {
            summary.lower().replace(" ", "-"): {"summary": summary, "value": value}
            for summary, value in body.examples.items()
        }
    return {body.media_type: content}
