"""A webhook that hears how a screening ended: its kind and name, and numbers.

One decision: `Notification` has no field for anything but numbers and the two words that the operator chose, so no case id, path or
reason can travel, whoever fills it in. A webhook never changes how a run ends: what goes wrong with it is a warning.

The address may hold a token. It comes from `notify.webhook`, which is never written down again (`settings_to_yaml` leaves it out), or from the
environment variable MEDAD_WEBHOOK, where workers find it; messages never name it.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import urllib.error
import urllib.request
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from medad_core.config import NotifySettings

log = logging.getLogger(__name__)
VARIABLE = "MEDAD_WEBHOOK"
ATTEMPTS, PAUSE_S = 3, 1.0


class Notification(BaseModel):
    """What is posted, as JSON. `name` is the last word of the run's or cohort's folder: do not name a folder after a patient."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    event: Literal["finished", "failed"]
    kind: Literal["screen", "screen-cohort"]
    name: str
    seconds: float = Field(ge=0)
    counts: dict[str, Annotated[int, Field(ge=0)]] = {}


def hold_webhook(settings: NotifySettings) -> None:
    """Keep the address that settings name in this process's environment: settings travel as text, and that has no address."""
    if settings.webhook is not None:
        os.environ[VARIABLE] = settings.webhook.get_secret_value()


def notify(notification: Notification, settings: NotifySettings, attempts: int = ATTEMPTS) -> bool:
    """Post to the webhook, where there is one; whether it took it. Raises nothing, and takes (timeout_s + PAUSE_S) an attempt at most."""
    address = settings.webhook.get_secret_value() if settings.webhook else os.environ.get(VARIABLE, "")
    if not address:
        return False
    body, told = notification.model_dump_json().encode(), threading.Event()
    # A thread bounds the whole of it: a timeout of sockets neither counts the look-up of a name nor an answer in drips.
    sending = threading.Thread(
        target=_send, args=(address, body, settings.timeout_s, attempts, told), name="medad-webhook", daemon=True
    )
    sending.start()
    sending.join(attempts * (settings.timeout_s + PAUSE_S))
    if sending.is_alive():
        log.warning(
            "the webhook did not answer in time; it was not told that %s %s", notification.name, notification.event
        )
    return told.is_set()


def _send(address: str, body: bytes, timeout_s: float, attempts: int, told: threading.Event) -> None:
    for attempt in range(1, attempts + 1):
        fault = _post(address, body, timeout_s)
        if fault is None:
            told.set()
            return
        if attempt == attempts or (
            fault[0] in "34" and fault != "429"
        ):  # 3xx and 4xx say that it will never take it here, 429 not now
            log.warning("the webhook was not told, after %d attempts: %s", attempt, fault)
            return
        time.sleep(PAUSE_S)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected POST would go on as a GET without its body, and a page for logging in would pass for a webhook that took it."""

    def redirect_request(self, *_) -> None:
        return None


def _post(address: str, body: bytes, timeout_s: float) -> str | None:
    """None where the webhook took it, else its status or the kind of error: the text of an error may quote the address."""
    try:
        request = urllib.request.Request(address, body, {"Content-Type": "application/json"}, method="POST")
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=timeout_s):
            return None
    except urllib.error.HTTPError as error:
        return str(error.code)
    except urllib.error.URLError as error:
        return type(error.reason).__name__
    except Exception as error:  # an address can be wrong in many ways, and none of them may cost the run
        return type(error).__name__
