"""What tells one model from another: a hash of every file that its answers depend on."""

import json
from hashlib import blake2b
from pathlib import Path

import xxhash

from edgecortex.errors import StoreError
from edgecortex.state import remember, remembered

_PATTERNS = ("*.safetensors", "config.json", "tokenizer*.json", "tokenizer.model")
_CHUNK = 1 << 22


def fingerprint(path: Path) -> str:
    """A name for the model in a folder, the same wherever it lies.

    A file is read once and remembered by its size and time of change.

    Raises:
        StoreError: there are no weights to tell it by.
    """
    known, found = remembered("fingerprints"), {}
    for file in sorted(file for pattern in _PATTERNS for file in path.glob(pattern)):
        stat = file.stat()
        key = f"{file.absolute()}:{stat.st_size}:{stat.st_mtime_ns}"
        found[file.name] = known[key] = known.get(key) or _hash(file)
    if not any(name.endswith(".safetensors") for name in found):
        raise StoreError(f"{path} has no .safetensors file to tell its KV from another model's")
    remember("fingerprints", known)
    return blake2b(json.dumps(found, sort_keys=True).encode(), digest_size=16).hexdigest()


def _hash(path: Path) -> str:
    hashed = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            hashed.update(chunk)
    return hashed.hexdigest()
