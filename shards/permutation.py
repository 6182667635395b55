"""A keyed bijection of 0..n-1 that is computed at any index in constant time, without a table.

A Feistel network over mixed radices: x = left·b + right with left in 0..a-1, right in 0..b-1, and by turns

    left  <- left  + F(key, round, right)  mod a
    right <- right + F(key, round, left)   mod b

Each line can be undone whatever F is, so all together is a bijection of 0..a·b-1. With a = ⌈√n⌉ and b = ⌈n/a⌉ that is
less than a more than n (for small n, 8 x 8); a value that lands outside is sent through again until it is inside
(cycle walking), which is again a bijection. Black and Rogaway, "Ciphers with arbitrary finite domains", CT-RSA 2002.
Six rounds, because Patarin ("Security of random Feistel schemes with 5 or more rounds", CRYPTO 2004) finds five or
more enough even for one who sees nearly the whole table, as an epoch does. F is a statistical hash, not a
cryptographic one: nobody attacks a shuffle.
"""

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROUNDS = 6
SMALLEST_SIDE = np.uint64(8)  # on 4 x 4 some permutations come too often, which a chi-square test sees
CHUNK = 1 << 14  # indices worked on at a time: the scratch arrays stay within a core's cache

Words = NDArray[np.uint64]

# Constants are made once: on a batch of 64 indices, making them in every call would cost as much as the arithmetic.
GOLDEN, SHIFT, ONE = np.uint64(0x9E3779B97F4A7C15), np.uint64(32), np.uint64(1)  # GOLDEN = 2^64 / golden ratio
MIX = tuple(np.uint64(word) for word in (30, 0xBF58476D1CE4E5B9, 27, 0x94D049BB133111EB, 31))
TURNS = tuple(np.uint64((turn + 1) * 0xD1342543DE82EF95 % (1 << 64)) for turn in range(ROUNDS))


def make_key(*parts: int | str) -> int:
    """A 64-bit key out of integers and strings; ("a", "bc") and ("ab", "c") give different keys."""
    text = repr(parts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def subkeys(key: int, numbers: NDArray[np.int64]) -> Words:
    """A key for each number (a window, a class, a block …) beneath `key`; vectorised. Returns uint64[n]."""
    return mix(numbers.astype(np.uint64) * GOLDEN + np.uint64(key))


def mix(words: Words) -> Words:
    """The finaliser of splitmix64 (Steele, Lea and Flood, 2014): a bijection of 64 bits that hides all structure."""
    words = (words ^ (words >> MIX[0])) * MIX[1]
    words = (words ^ (words >> MIX[2])) * MIX[3]
    return words ^ (words >> MIX[4])


def permute(index: Any, size: Any, key: Any) -> NDArray[np.int64]:
    """Where the permutation of 0..size-1 named by `key` sends each index.

    index: int64[n] within 0..size-1. size (1..2^62) and key (64 bits): one for all, or [n], one for each index.
    Returns int64[n]. Memory beyond the result does not depend on n.
    """
    return _in_chunks(index, size, key, _forward)


def unpermute(index: Any, size: Any, key: Any) -> NDArray[np.int64]:
    """The inverse: unpermute(permute(index, size, key), size, key) == index. Arguments as for `permute`."""
    return _in_chunks(index, size, key, _backward)


def _in_chunks(index: Any, size: Any, key: Any, network: Any) -> NDArray[np.int64]:
    words, sizes, keys = (np.atleast_1d(np.asarray(value)).astype(np.uint64) for value in (index, size, key))
    result = np.empty(words.size, np.uint64)
    for start in range(0, words.size, CHUNK):
        part = slice(start, start + CHUNK)
        result[part] = _walk(words[part], _take(sizes, part), _take(keys, part), network)
    return result.astype(np.int64)


def _take(values: Words, part: Any) -> Words:
    """Those of `part`, or the one value that stands for all."""
    return values if values.size == 1 else values[part]


def _walk(words: Words, sizes: Words, keys: Words, network: Any) -> Words:
    rows, columns = _sides(sizes)
    words = network(words, rows, columns, keys)
    while (outside := np.flatnonzero(words >= sizes)).size:
        again = (_take(values, outside) for values in (rows, columns, keys))
        words[outside] = network(words[outside], *again)
    return words


def _sides(sizes: Words) -> tuple[Words, Words]:
    """a and b with a·b >= n; rounding in the root only moves a, never breaks the promise."""
    rows = np.maximum(np.ceil(np.sqrt(sizes)).astype(np.uint64), SMALLEST_SIDE)
    columns = np.maximum((sizes + rows - ONE) // rows, SMALLEST_SIDE)
    return rows, columns


def _forward(words: Words, rows: Words, columns: Words, keys: Words) -> Words:
    left, right = np.divmod(words, columns)
    for turn in range(0, ROUNDS, 2):
        left = _add(left, _scaled_hash(right, keys, turn, rows), rows)
        right = _add(right, _scaled_hash(left, keys, turn + 1, columns), columns)
    return left * columns + right


def _backward(words: Words, rows: Words, columns: Words, keys: Words) -> Words:
    left, right = np.divmod(words, columns)
    for turn in reversed(range(0, ROUNDS, 2)):
        right = _add(right, columns - _scaled_hash(left, keys, turn + 1, columns), columns)
        left = _add(left, rows - _scaled_hash(right, keys, turn, rows), rows)
    return left * columns + right


def _add(words: Words, amount: Words, modulus: Words) -> Words:
    """(words + amount) mod modulus, for sums below twice it: unsigned wrap-around makes the wrong branch the larger."""
    words = words + amount
    return np.minimum(words, words - modulus)


def _scaled_hash(words: Words, keys: Words, turn: int, modulus: Words) -> Words:
    """F: the upper 32 bits of a hash of (key, turn, word), scaled to 0..modulus-1 by a product, not a division."""
    hashed = words * GOLDEN + (keys + TURNS[turn])
    hashed ^= hashed >> MIX[0]
    hashed *= MIX[1]
    hashed ^= hashed >> MIX[2]
    hashed *= MIX[3]
    hashed >>= SHIFT
    hashed *= modulus
    hashed >>= SHIFT
    return hashed
