"""Who is who in a shard set: keys, sample ids and group hashes, all hashed so that none gives a source path away.

The format is written down in FORMAT.md ("Names").
"""

import hashlib
import re
from collections.abc import Sequence

import numpy as np

MAX_KEY_BYTES = 79
KEY = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9_-]{{0,{MAX_KEY_BYTES - 1}}}")
SALT_BYTES = 32


def make_key(number: int, source: str, salt: bytes) -> str:
    """The key of a sample: its running number (0..99999999) and 8 hex digits of the keyed hash of its source.

    Raises:
        ValueError: a number outside that range.
    """
    if not 0 <= number < 10**8:
        raise ValueError(
            f"sample number {number} is outside 0..99999999: make several sets and merge their training runs"
        )
    return f"{number:08d}-{hashlib.blake2b(source.encode(), digest_size=4, key=salt).hexdigest()}"


def check_key(key: str) -> str:
    """Return `key` if a shard may hold it; ValueError if it is long, not ASCII, or has a blank, a dot or a slash."""
    if not KEY.fullmatch(key):
        raise ValueError(
            f"key {key[:100]!r} is not allowed: 1..{MAX_KEY_BYTES} ASCII letters, digits, '_' and '-' (no '-' in front)"
        )
    return key


def sample_id(set_id: str, key: str) -> int:
    """The 64-bit id of a sample: blake2b of the key, personalised with the set id (32 hex digits)."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8, person=bytes.fromhex(set_id)).digest(), "little")


def sample_ids(set_id: str, keys: Sequence[str]) -> np.ndarray:
    """The ids of many keys: uint64[n]."""
    return np.fromiter((sample_id(set_id, key) for key in keys), np.uint64, len(keys))


def group_hash(group: str, salt: bytes) -> int:
    """The 64-bit keyed hash of a group's name (a patient, say); the salt stays in the private folder."""
    return int.from_bytes(
        hashlib.blake2b(group.encode(), digest_size=8, key=salt, person=b"medshard-group").digest(), "little"
    )


def salt_digest(salt: bytes) -> str:
    """What the manifest may tell of the salt: 32 hex digits. Equal digests mean comparable group hashes.

    Raises:
        ValueError: a salt of another length.
    """
    if len(salt) != SALT_BYTES:
        raise ValueError(f"the salt has {len(salt)} bytes, {SALT_BYTES} are wanted: was the private folder damaged?")
    return hashlib.blake2b(salt, digest_size=16, person=b"medshard-salt").hexdigest()
