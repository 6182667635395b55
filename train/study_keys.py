"""A table of the study's params.json, read key by key, so that none is passed over in silence."""

import difflib
from collections.abc import Mapping
from typing import Any


class Keys:
    """A table of params.json whose keys are ticked off as they are read."""

    def __init__(self, content: Any, path: str = "") -> None:
        if not isinstance(content, Mapping):
            raise ValueError(f"params {path or 'file'} holds {content!r}, not a table of keys")
        self._content, self._path, self._asked = content, path, set[str]()

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key."""
        self._asked.add(key)
        return self._content.get(key, default)

    def table(self, key: str) -> "Keys":
        """A table below; empty where there is none."""
        return Keys(self.get(key, {}), f"{self._path}{key}.")

    def done(self, *others: str) -> None:
        """Refuse keys that nothing asked for, with the nearest that is known."""
        known = sorted(self._asked | set(others))
        for key in self._content:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
                raise ValueError(f"params: unknown key {self._path}{key}: {hint}")

    def fail(self, key: str, got: Any, why: str) -> ValueError:
        """A mistake at a key, as an error to raise."""
        return ValueError(f"params: {self._path}{key} is {got!r}: {why}")
