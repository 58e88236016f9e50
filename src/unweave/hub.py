"""Files from the network: found in the cache, fetched, or refused quickly and with a way on.

Without a network the libraries retry for most of a minute before they give up. Here the hub is knocked at once; where
nobody answers, the library is told that it is offline, so that cached files are still used and everything else fails
at once.
"""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from unweave.errors import ModelError, UnweaveError

_SECONDS = 3.0
_CURE = "go online, or use `--checkpoint FILE` with weights you have, or `--random-weights`"


def reachable(url: str) -> bool:
    """Whether a server answers at an address within three seconds (a proxy is taken at its word)."""
    parts = urlsplit(url)
    if urllib.request.getproxies().get(parts.scheme):
        return True
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        with socket.create_connection((parts.hostname or "", port), timeout=_SECONDS):
            return True
    except OSError:
        return False


@contextmanager
def fetching(model_id: str, *, allowed: bool = True, url: str | None = None, cure: str = _CURE) -> Iterator[None]:
    """While a library fetches files: offline where nobody answers, and every failure one `ModelError`.

    Args:
        model_id: For the message.
        allowed: False keeps the library offline without knocking; what is cached is still used.
        url: The server, where it is not the hub.
        cure: What to do where there is no network.
    """
    from huggingface_hub import constants

    before, timeout = constants.HF_HUB_OFFLINE, socket.getdefaulttimeout()
    offline = not allowed or bool(before) or not reachable(url or constants.ENDPOINT)
    constants.HF_HUB_OFFLINE = offline
    socket.setdefaulttimeout(timeout or 10 * _SECONDS)
    try:
        yield
    except UnweaveError:
        raise
    except Exception as error:
        if not is_about_files(error):
            raise
        if offline or isinstance(error, urllib.error.URLError):
            raise ModelError(
                "The hub cannot be reached, and what is needed is not in the local cache.",
                where=model_id,
                cure=cure,
            ) from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"The hub does not hand it out: {reason}", where=model_id, cure=cure) from error
    finally:
        constants.HF_HUB_OFFLINE = before
        socket.setdefaulttimeout(timeout)


def is_about_files(error: BaseException | None) -> bool:
    """Libraries wrap what the network raised in errors of their own, so the causes are looked through as well."""
    while error is not None:
        if isinstance(error, OSError) or type(error).__module__.startswith(("huggingface_hub", "httpx", "requests")):
            return True
        error = error.__cause__ or error.__context__
    return False
