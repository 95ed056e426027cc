"""What every medium has in common: provenance, a content hash, and files that are read and written with care."""

from __future__ import annotations

import hashlib
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue
from pydantic_core import to_jsonable_python

from models.errors import UserError
from models.records import ModelRecord
from pipelines.atomic import write_atomically

MAX_FILE_BYTES = 256 * 2**20
BADGE_CHARACTERS = 400

_logger = logging.getLogger(__name__)

JsonObject = Annotated[dict[str, JsonValue], BeforeValidator(to_jsonable_python)]
AnyArtifact = TypeVar("AnyArtifact", bound="Artifact")


class Provenance(BaseModel):
    """How an artifact came to be. It holds no time: the same provenance gives the same bytes on the same device.

    ``inputs``: one description an input, ``{"medium": "text", "text": ...}`` or ``{"medium": ..., "hash": ...}``;
    ``parents``: content hashes of the inputs that are not text; ``index``: which of the run's artifacts this is;
    ``version``: of Synesthete; ``badge``: a sentence or two that must stand beside the artifact wherever it is shown.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pipeline: str
    inputs: tuple[JsonObject, ...]
    params: JsonObject
    seed: int
    parents: tuple[str, ...]
    models: tuple[ModelRecord, ...]
    index: int = 0
    version: str
    badge: str = Field("", max_length=BADGE_CHARACTERS)

    def to_json(self) -> str:
        """One line of ASCII with sorted keys, so that equal provenances are equal bytes."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Provenance:
        """The inverse of :meth:`to_json`; raises ``ValueError`` for anything else."""
        return cls.model_validate_json(text)


@dataclass(frozen=True, eq=False)
class Artifact(ABC):
    """Base of the six media. Arrays are checked, and are the artifact's own and read-only from then on.

    ``source``: the suffix and the bytes of the file that it was read from, where these alone give it back.

    A wrong dtype or shape is a ``TypeError``; values that no file of the medium can hold (NaN, nothing at all, out
    of range) are a :class:`UserError`, because a user's file can cause them.
    """

    medium: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]

    provenance: Provenance | None = field(default=None, kw_only=True)
    source: tuple[str, bytes] | None = field(default=None, init=False, repr=False)

    @property
    def kept_as(self) -> str:
        """In which of :attr:`suffixes` the gallery keeps it: the first that can hold it."""
        return self.suffixes[0]

    @abstractmethod
    def content_hash(self) -> str:
        """sha256 (hex) of the medium and the payload, whatever the provenance."""

    @abstractmethod
    def encode(self, suffix: str) -> bytes:
        """The bytes of a file that ends in ``suffix``, one of :attr:`suffixes`, with the provenance if it has room."""

    def files(self, name: str) -> dict[str, bytes]:
        """What :meth:`save` writes for a file of this name, by name: most media are one file.

        Raises :class:`UserError` as :meth:`save` does.
        """
        return {name: self.encode(self._suffix_for(Path(name)))}

    @classmethod
    @abstractmethod
    def decode(cls, data: bytes, suffix: str) -> Self:
        """The inverse of :meth:`encode`. Damaged data raises whatever the format's decoder raises."""

    def called(self, name: str) -> Self:
        """With what only the ``name`` of its file says; most media say all inside."""
        return self

    def with_provenance(self, provenance: Provenance | None) -> Self:
        other = copy(self)  # with the same arrays, hash and source
        object.__setattr__(other, "provenance", provenance)
        return other

    def note(self) -> str | None:
        """What is embedded in files: the provenance as JSON."""
        return self.provenance.to_json() if self.provenance else None

    def sidecar(self, data: bytes) -> bytes:
        """The JSON that lies beside a file with the bytes ``data``."""
        record = {
            "medium": self.medium,
            "content_hash": self.content_hash(),
            "file_sha256": hashlib.sha256(data).hexdigest(),
            "provenance": self.provenance.model_dump(mode="json") if self.provenance else None,
        }
        return (json.dumps(record, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()

    def save(self, path: Path | str) -> None:
        """Write the file, in the format that its suffix names, and its sidecar ``<path>.json``, each atomically.

        Some formats have more files, which are written beside it (:meth:`files`).

        Raises :class:`UserError` for a suffix of another medium and for a folder that cannot be written to.
        """
        path = Path(path)
        files = self.files(path.name)
        write_atomically(sidecar_path(path), self.sidecar(files[path.name]))
        for name in reversed(files):
            write_atomically(path.with_name(name), files[name])

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a file that :meth:`save` or any other program wrote; provenance comes from the file, else the sidecar.

        Raises :class:`UserError` for a missing, empty, too large, damaged or unsupported file.
        """
        path = Path(path)
        return load_as(path, cls._suffix_for(path), lambda _: cls)

    @classmethod
    def _suffix_for(cls, path: Path) -> str:
        suffix = suffix_of(path, cls.suffixes)
        if suffix is None:
            endings = ", ".join(cls.suffixes)
            raise UserError(f"'{path.name[:60]}' is not a name for {cls.medium}.", f"End it in {endings}.")
        return suffix


def load_as(path: Path, suffix: str, choose: Callable[[bytes], type[AnyArtifact]]) -> AnyArtifact:
    """Read ``path`` as the artifact type that ``choose`` picks by the file's bytes; errors as :meth:`Artifact.load`."""
    data = _read_bytes(path)
    try:
        decoded = choose(data).decode(data, suffix)
        artifact = decoded.called(path.name)
    except UserError:
        raise
    except Exception as error:  # Decoders of damaged files raise anything, from KeyError to struct.error.
        _logger.info("cannot decode %s", path, exc_info=True)
        raise UserError(f"'{path.name[:60]}' is damaged, or is not a {suffix} file.", "Export it again.") from error
    if artifact.provenance is None and (said := _sidecar_provenance(path, data)):
        return artifact.with_provenance(said)
    if artifact is decoded:  # neither a sidecar nor its name said a part of it
        object.__setattr__(artifact, "source", (suffix, data))
    return artifact


def suffix_of(path: Path, suffixes: Iterable[str]) -> str | None:
    """The longest of ``suffixes`` that the name ends in, whatever its case; ``None`` if none does."""
    name = path.name.lower()
    return max((suffix for suffix in suffixes if name.endswith(suffix)), key=len, default=None)


def sidecar_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def provenance_of(note: object) -> Provenance | None:
    """The provenance in a file's comment; ``None`` where there is none, or another program wrote it."""
    if not isinstance(note, str):
        return None
    try:
        return Provenance.from_json(note)
    except ValueError:
        return None


def once(hash_of: Callable[[AnyArtifact], str]) -> Callable[[AnyArtifact], str]:
    """Decorates an :meth:`Artifact.content_hash`: artifacts never change, and to hash a large clip takes a second."""

    @wraps(hash_of)
    def content_hash(artifact: AnyArtifact) -> str:
        known = vars(artifact)
        if "_content_hash" not in known:
            known["_content_hash"] = hash_of(artifact)
        return str(known["_content_hash"])

    return content_hash


def digest(*parts: str | float | np.ndarray | None) -> str:
    """sha256 (hex) over ``parts`` with their types, shapes and lengths, so that no two lists of parts are alike."""
    sha = hashlib.sha256()
    for part in parts:
        data: memoryview | bytes
        if isinstance(part, np.ndarray):
            # Of what lies in one piece, as all arrays of artifacts do, nothing is copied.
            head, data = f"{part.dtype.str}{part.shape}", np.ascontiguousarray(part).reshape(-1).view(np.uint8).data
        else:
            head, data = type(part).__name__, str(part).encode()
        sha.update(f"{head}:{len(data)}\n".encode())
        sha.update(data)
    return sha.hexdigest()


def set_array(artifact: Artifact, name: str, dtype: type[np.generic], shape: tuple[int | None, ...]) -> None:
    """Check the field ``name`` (``None`` in ``shape``: any positive length) and replace it by a read-only copy.

    A read-only array in one piece that owns its memory, as decoders and other artifacts give it, is taken as it is.
    """
    array = getattr(artifact, name)
    wanted = ", ".join("*" if size is None else str(size) for size in shape)
    if not isinstance(array, np.ndarray) or array.dtype != dtype:
        got = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise TypeError(f"{name} must be a numpy array of {np.dtype(dtype)}, not {got}")
    if array.ndim != len(shape) or any(size not in (None, got) for size, got in zip(shape, array.shape, strict=True)):
        raise TypeError(f"{name} must have the shape ({wanted}), not {array.shape}")
    if array.size == 0:
        raise UserError(f"The {artifact.medium} is empty.", f"Its {name} must be at least one.")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise UserError(f"The {artifact.medium} has {name} that are not finite numbers.", "Remove NaN and infinity.")
    given = array.flags.owndata and array.flags.c_contiguous and not array.flags.writeable
    freeze(artifact, name, array if given else array.copy(order="C"))


def freeze(artifact: Artifact, name: str, array: np.ndarray) -> None:
    """Set a field of a frozen artifact, in its ``__post_init__``, to a read-only array."""
    array.setflags(write=False)
    object.__setattr__(artifact, name, array)


def _read_bytes(path: Path) -> bytes:
    name = path.name[:60]
    try:
        if path.is_dir():
            raise UserError(f"'{name}' is a folder, not a file.", "Choose a file in it.")
        if not path.is_file():
            raise UserError(f"There is no file '{name}'.", "Check its name and folder.")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UserError(f"'{name}' is larger than {MAX_FILE_BYTES // 2**20} MB.", "Use a smaller file.")
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"'{name}' cannot be read.", f"The system says: {error.strerror}.") from error
    if not data:
        raise UserError(f"'{name}' is empty.", "Export or download it again.")
    return data


def _sidecar_provenance(path: Path, data: bytes) -> Provenance | None:
    """What the sidecar says, if it is about these very bytes: a file that was replaced since has no provenance."""
    try:
        record: Any = json.loads(sidecar_path(path).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or record.get("file_sha256") != hashlib.sha256(data).hexdigest():
        return None
    return provenance_of(json.dumps(record.get("provenance")))
