"""Why an upload failed: what may pass, and a sentence for what will not."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from gguf_mla.errors import GgufMlaError, MachineError
from gguf_mla.remote.outgoing import LostError, StoppedError
from gguf_mla.remote.troubles import Trouble, asked_seconds

if TYPE_CHECKING:
    from collections.abc import Iterator

TOKEN = "Give a token that may write: hf auth login, or HF_TOKEN"  # noqa: S105 - a sentence
_FULL = re.compile(r"storage|quota|limit|payment|too large", re.IGNORECASE)
ROOM = "Free some of the account's storage, or make room by a larger plan; the same command then goes on"
SMALLER = "The hub takes files of at most 50 GB in this way: give --split-max-size 48G"
# What an answer of the hub says, and what to do.
_REFUSALS = {
    401: ("the hub does not accept this token", TOKEN),
    404: ("there is no such repository, or this token may not see it", "Check the name and the token"),
    413: ("a file is too large for the hub", SMALLER),
}


def trouble(error: Exception, name: str, endpoint: str, kind: type[GgufMlaError]) -> Trouble:
    """Return what failed as something that may pass; raise what will not, as an error of a kind."""
    causes = [*_causes(error)]
    for cause in causes:
        if isinstance(cause, GgufMlaError | StoppedError):
            raise cause
        if isinstance(cause, LostError):
            remedy = "Run the same command again: what is missing is made and sent once more"
            raise MachineError("the hub has lost a file that it had been sent", file=name, remedy=remedy)
    answered = next((cause for cause in causes if getattr(cause, "response", None) is not None), None)
    if answered is not None:
        return _answered(answered, name, endpoint, kind)
    if isinstance(error, ValueError):
        raise kind(f"the hub refuses a file ({_words(error)})", file=name)
    last = causes[-1]
    if isinstance(last, OSError) and last.errno and not isinstance(last, ConnectionError):
        raise MachineError(f"reading what is uploaded failed ({last.strerror})", file=name)
    return Trouble(f"the hub cannot be reached ({type(last).__name__}: {_words(last)})")


def status(error: BaseException) -> int | None:
    """Return the status of the answer that an error is about."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _answered(error: Any, name: str, endpoint: str, kind: type[GgufMlaError]) -> Trouble:
    code, response = int(error.response.status_code), error.response
    if not str(response.url).startswith(endpoint):
        return Trouble(f"the hub's storage answers with status {code}", asked=asked_seconds(response.headers))
    if code in (409, 412):
        return Trouble("the repository was changed at the same moment")
    if code in (408, 429) or (code >= 500 and code != 507):
        return Trouble(f"the hub answers with status {code}", asked=asked_seconds(response.headers))
    said = str(getattr(error, "server_message", None) or "").strip()
    because = f"status {code}" + (f": {said}" if said else "")
    if code in (402, 507) or (code in (403, 413) and _FULL.search(said)):
        raise kind(f"the hub has no room for it ({because})", file=name, remedy=SMALLER if code == 413 else ROOM)
    what, remedy = _REFUSALS.get(code, ("the hub does not allow this upload", TOKEN))
    raise kind(f"{what} ({because})", file=name, remedy=remedy)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that it came from."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__


def _words(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
