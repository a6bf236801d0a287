"""Posting to a webhook how a screening ended: its kind and name, and numbers.

One decision: `Notification` has no field for anything but numbers and the two words that the operator chose. No case
id, path or reason can travel, whoever fills it in. A webhook never changes how a run ends: what goes wrong with it is a
warning.

The address may hold a token. It comes from `notify.webhook`, which no dump of the settings holds, or from the
environment variable MEDAD_WEBHOOK, where workers find it. Both are checked by the same rule of the settings. No message
and no log names it.
"""

from __future__ import annotations

import logging
import os
import ssl
import threading
import time
from functools import cache
from typing import Annotated, Literal

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medad_core.config import NotifySettings
from medad_core.errors import ConfigError
from medad_core.surroundings.proxies import unusable_proxy_for

log = logging.getLogger(__name__)
WEBHOOK_VARIABLE = "MEDAD_WEBHOOK"
ATTEMPTS = 3
PAUSE_S = 1.0
_THREAD = "medad-webhook"
_HTTP_LOGGERS = ("httpx", "httpcore.connection", "httpcore.http11", "httpcore.proxy", "httpcore.socks")


class Notification(BaseModel):
    """What is posted, as JSON.

    `name` is the last word of the run's or cohort's folder: do not name a folder after a patient.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    event: Literal["finished", "failed"]
    kind: Literal["screen", "screen-cohort", "verify"]
    name: str
    seconds: float = Field(ge=0)
    counts: dict[str, Annotated[int, Field(ge=0)]] = {}


def keep_webhook(settings: NotifySettings) -> None:
    """Keep the address that settings name in this process's environment: settings that are sent on have it no more.

    Raises ConfigError where the environment names what is no address of a webhook.
    """
    address = webhook_of(settings)
    if address is not None:
        os.environ[WEBHOOK_VARIABLE] = address


def webhook_of(settings: NotifySettings) -> str | None:
    """The address in the settings, else that of the environment, None for none.

    Raises ConfigError, which does not quote it, where it is no http:// or https:// address.
    """
    webhook = settings.webhook
    if webhook is None:
        try:
            webhook = NotifySettings(webhook=os.environ.get(WEBHOOK_VARIABLE) or None).webhook
        except ValidationError as error:
            raise ConfigError(f"{WEBHOOK_VARIABLE} {error.errors()[0]['ctx']['error']}") from None
    return None if webhook is None else webhook.get_secret_value()


def notify(notification: Notification, settings: NotifySettings, attempts: int = ATTEMPTS) -> bool:
    """Post to the webhook, where there is one. Returns whether it took the notification.

    Raises nothing, and takes `timeout_s` + `PAUSE_S` seconds an attempt at most.
    """
    try:
        address = webhook_of(settings)
    except ConfigError as error:
        log.warning("no notification: %s", error)
        return False
    if address is None:
        return False
    body = notification.model_dump_json().encode()
    delivered = threading.Event()
    # A thread bounds the whole of it: a timeout of sockets neither counts the look-up of a name nor an answer in drips.
    sending = threading.Thread(
        target=_send, args=(address, body, settings.timeout_s, attempts, delivered), name=_THREAD, daemon=True
    )
    sending.start()
    sending.join(attempts * (settings.timeout_s + PAUSE_S))
    if sending.is_alive():
        log.warning(
            "the webhook did not answer in time; it does not know that %s %s", notification.name, notification.event
        )
    return delivered.is_set()


def _send(address: str, body: bytes, timeout_s: float, attempts: int, delivered: threading.Event) -> None:
    for logger in _HTTP_LOGGERS:
        logging.getLogger(logger).addFilter(_is_of_another_thread)
    variable = unusable_proxy_for(address)
    if variable is not None:
        log.warning("the webhook is not asked: it is behind the proxy of %s, which medad cannot use", variable)
        return
    for attempt in range(1, attempts + 1):
        fault = _post(address, body, timeout_s)
        if fault is None:
            delivered.set()
            return
        if attempt == attempts or _is_final(fault):
            log.warning("the webhook took no notification, after %d attempts: %s", attempt, fault)
            return
        time.sleep(PAUSE_S)


def _is_of_another_thread(record: logging.LogRecord) -> bool:
    """A filter: the libraries log the address of each request."""
    return record.threadName != _THREAD


def _is_final(fault: str) -> bool:
    """Whether another attempt is in vain: 3xx and 4xx say that the address is wrong, 429 only that it is too early."""
    return fault[0] in "34" and fault != "429"


def _post(address: str, body: bytes, timeout_s: float) -> str | None:
    """None where the webhook took it, else its status or the kind of error: the text of an error may quote the address.

    No redirect is followed: the POST would go on as a GET without its body, and a page for logging in would answer it.
    """
    headers = {"Content-Type": "application/json"}
    try:
        # Streamed: the status counts, and nobody waits for a body in drips.
        with httpx.stream(
            "POST", address, content=body, headers=headers, timeout=timeout_s, verify=_system_certificates()
        ) as response:
            return None if response.is_success else str(response.status_code)
    except Exception as error:  # an address can be wrong in many ways, and none of them may cost the run
        return type(error).__name__


@cache  # a third of a second
def _system_certificates() -> ssl.SSLContext:
    """The certificates that the system trusts, a hospital's own among them; httpx would take those of certifi."""
    return ssl.create_default_context()
