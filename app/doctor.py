"""``python -m app doctor``: what works on this machine, and what to do about the rest."""

from __future__ import annotations

import errno
import logging
import platform
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from app.settings import Settings
from models.accounts import readable_bytes
from models.errors import UserError
from models.machine import choose_device, compute_dtype, memory_budget
from models.spec import ModelSpec
from pipelines.atomic import plain_folder_errors
from pipelines.base import installed_registry

log = logging.getLogger(__name__)

LOW_SPACE = 1_000_000_000
NO_SPACE = 50_000_000
HUB_TIMEOUT = 5.0

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """One finding; ``advice`` is empty where there is nothing to do."""

    name: str
    status: Status
    detail: str
    advice: str = ""

    def line(self) -> str:
        advice = f" {self.advice}" if self.advice else ""
        return f"{self.status:<5} {self.name:<20} {self.detail}{advice}"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


Finding = tuple[Status, str, str]


def examine(settings: Settings) -> Iterator[Check]:
    """Every check in turn; a check that breaks is a failed one, and the others go on."""
    checks: dict[str, Callable[[], Finding]] = {
        "python": _python,
        "torch": _torch,
        "device": partial(_device, settings),
        "memory": partial(_memory, settings),
        "pipelines": partial(_pipelines, settings),
    }
    for key, spec in settings.catalog().items():
        checks[f"model {key}"] = partial(_model, spec)
    checks["output folder"] = partial(_output_folder, settings.output_folder)
    checks["port"] = partial(_port, settings)
    if settings.profile == "full":
        checks["hub"] = _hub
    for name, check in checks.items():
        try:
            yield Check(name, *check())
        except UserError as error:
            yield Check(name, "fail", error.sentence, error.hint)
        except Exception as error:
            log.exception("the check '%s' broke", name)
            yield Check(name, "fail", f"{type(error).__name__}: {error}.", "The log above has it whole.")


def check_port(host: str, port: int) -> None:
    """Raises :class:`UserError` unless a server can listen there."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except (OSError, UnicodeError) as error:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            sentence = f"Port {port} on '{host}' is already in use."
            raise UserError(sentence, "Choose another with --port, or stop the program that has it.") from error
        raise UserError(
            f"'{host[:60]}' port {port} cannot be served on.", "Choose another --host or --port."
        ) from error


def _python() -> Finding:
    return "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}", ""


def _torch() -> Finding:
    return "ok", f"{torch.__version__}, {torch.get_num_threads()} threads", ""


def _device(settings: Settings) -> Finding:
    device = choose_device(settings.device)
    dtype = compute_dtype(device)
    detail = f"{device}, computes in {str(dtype).removeprefix('torch.')}"
    if dtype == torch.float32:
        return "warn", f"{detail}, because bfloat16 is no faster.", "It works, but takes longer."
    return "ok", detail, ""


def _memory(settings: Settings) -> Finding:
    asked = settings.memory_budget_gb
    budget = int(asked * 1e9) if asked is not None else memory_budget(choose_device(settings.device))
    sizes = [spec.bytes for spec in settings.catalog().values()]
    total, largest = readable_bytes(sum(sizes)), readable_bytes(max(sizes))
    detail = f"models may take {readable_bytes(budget)}; all need {total}, the largest {largest}"
    if max(sizes) > budget:
        return "fail", f"{detail}.", "Close other programs, raise --memory-budget-gb, or use --profile lite."
    if sum(sizes) > budget:
        return (
            "warn",
            f"{detail}.",
            "It works if no pipeline needs them all at once; models are loaded again and again.",
        )
    return "ok", detail, ""


def _pipelines(settings: Settings) -> Finding:
    return "ok", ", ".join(pipeline.name for pipeline in installed_registry(settings.profile)), ""


def _model(spec: ModelSpec) -> Finding:
    missing = spec.source.missing()
    if missing and spec.source.origin:
        return "warn", f"not fetched yet: {', '.join(missing)}.", f"It comes from {spec.source.origin} at first use."
    try:
        files = spec.source.resolve(lambda fraction, message: None)
    except UserError as error:
        if spec.source.published:
            raise
        return "warn", error.sentence, error.hint
    return "ok", f"{readable_bytes(spec.bytes)}, checksum {files.checksum[:12]}", ""


def _output_folder(folder: Path) -> Finding:
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    with plain_folder_errors(there / "file"), tempfile.TemporaryFile(dir=there):
        pass
    free = shutil.disk_usage(there).free
    detail = f"'{folder}', {readable_bytes(free)} free"
    if free < LOW_SPACE:
        return "fail" if free < NO_SPACE else "warn", f"{detail}.", "Free some space, or use another --output-folder."
    return "ok", detail, ""


def _port(settings: Settings) -> Finding:
    check_port(settings.host, settings.port)
    return "ok", f"{settings.port} on {settings.host} is free", ""


def _hub() -> Finding:
    from huggingface_hub import constants, get_session
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT)
    except (HTTPError, OSError) as error:
        return (
            "warn",
            f"{constants.ENDPOINT} is out of reach ({error}).",
            "Models that are not here yet cannot be fetched.",
        )
    return "ok", constants.ENDPOINT, ""
