"""``python -m app models ...``: what models there are, fetching and checking them, freeing those of a running app."""

from __future__ import annotations

import argparse
import html
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from typing import Any

from app.commands import progress_bar
from app.settings import Settings
from models.accounts import readable_bytes
from models.errors import UserError
from models.licences import accept_licence, is_accepted, require_licence
from models.spec import ModelSpec
from pipelines.base import Progress

ANSWER_SECONDS = 120.0  # freeing waits for a load that is under way
PERCENT = 100
KEY = 21  # columns of a model's key


def models(settings: Settings, arguments: argparse.Namespace) -> int:
    """Do what ``arguments.action`` says, and list the models if it says nothing."""
    actions: dict[str, Callable[[Settings, argparse.Namespace], int]] = {
        "list": list_models,
        "fetch": fetch,
        "verify": verify,
        "free": free,
    }
    return actions[arguments.action or "list"](settings, arguments)


def list_models(settings: Settings, arguments: argparse.Namespace) -> int:
    """The profile's models: size in float32, whether they are on this machine, licence."""
    rows: list[dict[str, Any]] = [
        {
            "key": spec.key,
            "bytes": spec.bytes,
            "missing": list(spec.source.missing()),
            "licence": spec.licence,
            "restricted": spec.restricted,
            "accepted": is_accepted(spec),
            "note": spec.note,
        }
        for spec in settings.catalog().values()
    ]
    if arguments.json:
        return _print_json(rows)
    for row in rows:
        place = f"missing: {', '.join(row['missing'])}" if row["missing"] else "here"
        restricts = f" (restricts use{'' if row['accepted'] else ', not accepted yet'})" if row["restricted"] else ""
        note = f"  ({row['note']})" if row["note"] else ""
        print(f"{row['key']:<{KEY}}{readable_bytes(row['bytes']):>10}  {row['licence']}{restricts}  {place}{note}")
    return 0


def fetch(settings: Settings, arguments: argparse.Namespace) -> int:
    """Bring the models to this machine; nothing is fetched before every licence that restricts use is accepted.

    What nobody has published is left out unless it is named.
    """
    specs = [spec for spec in _chosen(settings, arguments.keys) if arguments.keys or spec.source.published]
    for spec in specs:
        if arguments.accept_licence:
            accept_licence(spec)
        require_licence(spec)
    rows = []
    for spec in specs:
        with progress_bar(sys.stderr) as bar:
            files = spec.source.resolve(lambda share, said: bar(Progress(int(PERCENT * share), PERCENT, said)))
        rows.append({"key": spec.key, "licence": spec.licence, "restricted": spec.restricted})
        rows[-1] |= {"folder": str(files.folder), "checksum": files.checksum}
        if not arguments.json:
            restricts = ", which restricts use" if spec.restricted else ""
            print(
                f"{spec.key:<{KEY}}here, checksum {files.checksum[:12]}, licence {spec.licence}{restricts}", flush=True
            )
    return _print_json(rows) if arguments.json else 0


def verify(settings: Settings, arguments: argparse.Namespace) -> int:
    """Hash the models' files again; 2 if one is not what it was."""
    rows = []
    for spec in _chosen(settings, arguments.keys):
        rows.append({"key": spec.key} | _verdict(spec))
        if not arguments.json:
            print("{status:<9}{key:<{width}}{detail}".format(**rows[-1], width=KEY), flush=True)
    if arguments.json:
        _print_json(rows)
    return 2 if any(row["status"] == "damaged" for row in rows) else 0


def free(settings: Settings, arguments: argparse.Namespace) -> int:
    """Ask a running app to free a model, all that are not in use, or those that nobody waits for either."""
    if arguments.all and arguments.key:
        raise UserError("It is one model or all of them.", "Leave out --all, or the name.")
    url = arguments.url or f"http://127.0.0.1:{settings.port}"
    if not _ask(url, "/metrics").startswith(b"# TYPE synesthete_"):
        raise _nobody(url)
    request = json.dumps({"data": [arguments.key or "", arguments.all]}).encode()
    [freed] = json.loads(_ask(url, "/gradio_api/run/free", request))["data"]
    if arguments.json:
        return _print_json(freed)
    kept = f" In use or needed next, so kept: {', '.join(freed['kept'])}." if freed["kept"] else ""
    print(f"Freed {readable_bytes(freed['bytes'])}.{kept}")
    return 0


def _chosen(settings: Settings, keys: list[str]) -> list[ModelSpec]:
    specs = settings.catalog()
    for key in keys:
        if key not in specs:
            raise UserError(f"There is no model called {key[:60]!r}.", f"Choose among: {', '.join(specs)}.")
    return [specs[key] for key in keys or specs]


def _verdict(spec: ModelSpec) -> dict[str, str]:
    if spec.source.origin and spec.source.missing():
        return {"status": "missing", "detail": f"not fetched yet from {spec.source.origin}", "checksum": ""}
    try:
        files = spec.source.resolve(lambda share, said: None)
    except UserError as error:
        return {"status": "damaged" if spec.source.published else "missing", "detail": str(error), "checksum": ""}
    return {"status": "ok", "detail": f"checksum {files.checksum[:12]}", "checksum": files.checksum}


def _print_json(value: Any) -> int:
    print(json.dumps(value, indent=2))
    return 0


def _ask(url: str, path: str, data: bytes | None = None) -> bytes:
    """What the app at ``url`` answers; raises :class:`UserError` with its words if it says no."""
    if not url.startswith(("http://", "https://")):
        raise UserError(f"'{url[:60]}' is no address.", "Write it like http://127.0.0.1:7860.")
    try:
        request = urllib.request.Request(url.rstrip("/") + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as response:
            return bytes(response.read())
    except urllib.error.HTTPError as error:
        said = _said(error.read())
        raise UserError(html.unescape(said)) if said else _nobody(url) from error
    except (OSError, ValueError, HTTPException) as error:
        raise _nobody(url) from error


def _said(answer: bytes) -> str:
    """The words of an error that the app made for people."""
    try:
        return str(json.loads(answer)["error"] or "")
    except (ValueError, KeyError, TypeError):
        return ""


def _nobody(url: str) -> UserError:
    return UserError(
        f"No Synesthete app answers at '{url[:60]}'.",
        "Start it with 'python -m app serve', or give its address with --url.",
    )
