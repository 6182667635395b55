"""What may be written down: URLs without user, password and query, texts without secrets of the environment."""

import logging
import os
import re
from typing import Any
from urllib.parse import urlsplit, urlunsplit

SECRET_NAME = re.compile(
    r"KEY|SECRET|TOKEN|PASSW|PASSPHRASE|CREDENTIAL|SIGNATURE|SAS|CONNECTION_STRING|COOKIE|AUTH(?!OR)", re.IGNORECASE
)
SHORTEST_SECRET = 8  # characters; shorter values are words like "true"
USER = re.compile(r"://([^/?#\s@]*@|[^/?#\s@]*:[^?#\s]*@)+")  # a password may hold slashes, though it should not
QUERY = re.compile(r"(://[^\s?'\"<>]*)\?[^\s'\"<>]+")


def shown(url: str) -> str:
    """The URL for messages: without user, password, query and fragment."""
    parts = urlsplit(re.sub(USER, "://", url))
    place, _, port = parts.netloc.partition(":")
    if port and not port.isdigit() and not place.startswith("["):
        return f"{parts.scheme}://…/"  # a password with a question mark: where it ends, nobody can say
    return urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", ""))


def scrub(text: str) -> str:
    """A foreign message in one line, at most 200 characters, without queries, users of URLs, and secrets."""
    return re.sub(r"\?\S+", "", without_secrets(" ".join(text.split())))[:200]


def without_secrets(text: str) -> str:
    """A text without users and queries of its URLs, and without the values of variables whose names tell a secret."""
    text = re.sub(QUERY, r"\1", re.sub(USER, "://", text))
    for name, value in os.environ.items():
        if len(value) >= SHORTEST_SECRET and SECRET_NAME.search(name):
            text = text.replace(value, "…")
    return text


def hush_libraries() -> None:
    """From here on whatever a library logs, a hub's client its URLs, is without secrets."""
    make = logging.getLogRecordFactory()
    if getattr(make, "hushed", False):
        return

    def record(*args: Any, **options: Any) -> logging.LogRecord:
        made = make(*args, **options)
        made.msg, made.args = without_secrets(made.getMessage()), None
        return made

    record.hushed = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(record)
