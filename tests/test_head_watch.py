"""The watch over the head of a Ray cluster: a head that ends is noticed once, by whoever still looks."""

from __future__ import annotations

import socket
import time

import pytest

from flows import ray_head
from flows.ray_head import HeadWatch

SOON_S = 20.0


@pytest.fixture
def head(monkeypatch):
    """A port that somebody listens at."""
    monkeypatch.setattr(ray_head, "POLL_S", 0.02)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def test_a_head_that_ends_is_lost_after_the_patience_and_its_address_is_told(head):
    address = f"127.0.0.1:{head.getsockname()[1]}"
    told = []
    watch = HeadWatch(address, told.append, patience_s=0.3)
    time.sleep(0.6)
    assert not watch.is_lost and told == []
    head.close()
    ended = time.monotonic()
    while not told:
        assert time.monotonic() - ended < SOON_S
        time.sleep(0.02)
    assert time.monotonic() - ended > 0.2
    assert watch.is_lost and told == [address]


def test_a_head_that_ends_after_the_watch_concerns_nobody(head):
    told = []
    watch = HeadWatch(f"127.0.0.1:{head.getsockname()[1]}", told.append, patience_s=0.1)
    watch.close()
    head.close()
    time.sleep(0.6)
    assert not watch.is_lost and told == []
