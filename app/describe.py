"""A pipeline's declaration in words and as JSON: what the command line, and later the docs, say of it."""

from __future__ import annotations

import json
from typing import Any

from pipelines.base import Pipeline


def as_json(pipeline: Pipeline) -> dict[str, Any]:
    """Name, title, summary, routes, model keys and the JSON schema of the settings."""
    return {
        "name": pipeline.name,
        "title": pipeline.title,
        "summary": pipeline.summary,
        "routes": [{"inputs": list(route.inputs), "output": route.output} for route in pipeline.routes],
        "models": list(pipeline.models),
        "params": pipeline.params_type.model_json_schema(),
    }


def as_text(pipeline: Pipeline) -> str:
    """Several lines: what the pipeline does, then one line a setting."""
    ways = ", ".join(f"{' + '.join(route.inputs)} -> {route.output}" for route in pipeline.routes)
    schema = pipeline.params_type.model_json_schema()
    rows = [(name, _value(field, schema), field.get("description", "")) for name, field in schema["properties"].items()]
    width = max(len(name) for name, _, _ in rows)
    lines = [f"  {name:<{width}}  {text} ({value})" for name, value, text in rows]
    return "\n".join([f"{pipeline.name}: {pipeline.summary} ({ways})", *lines])


def _value(field: dict[str, Any], schema: dict[str, Any]) -> str:
    """``"integer 1..100; by default 25"``: what a setting may be, and what it is by default."""
    kinds = " or ".join(_kind(option, schema) for option in field.get("anyOf", [field]))
    return f"{kinds}; by default {json.dumps(field.get('default'))}"


def _kind(option: dict[str, Any], schema: dict[str, Any]) -> str:
    if "$ref" in option:
        option = schema["$defs"][option["$ref"].rpartition("/")[2]]
    if "enum" in option or "const" in option:
        return "|".join(map(str, option.get("enum", [option.get("const")])))
    low, high = (option.get(name, option.get(f"exclusiveM{name[1:]}")) for name in ("minimum", "maximum"))
    bounds = "" if low is None and high is None else f" {'' if low is None else low}..{'' if high is None else high}"
    return {"null": "null", "string": "text"}.get(option.get("type", ""), option.get("type", "anything")) + bounds
