"""The directory of sessions: what it says, that it says the same however it came to be, and what is due because of it."""

import random
import time
from datetime import timedelta

import pytest
from directory_log import Log
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memfold.projections.projector import Projector

DAY = timedelta(days=1)


@pytest.fixture
def log(store, server_url):
    return Log(store, server_url)


def soon():
    return time.monotonic() + 30


def step(log, rand):
    """One more thing happens to one of three sessions."""
    name = rand.choice("abc")
    session = log.sessions.get(name)
    if session is None or not session.memories or rand.random() < 0.25:
        log.remember(name, rand.randint(1, 4))
        return
    living, active = session.living(), session.active()
    some = rand.sample(living, min(len(living), rand.randint(1, 3)))
    kind = rand.choice(("compress", "compress", "fade", "restore", "forget", "forget", "change", "refresh", "end"))
    if kind == "compress" and active:
        log.compress(
            name, rand.sample(active, min(len(active), rand.randint(1, 4))), (rand.randint(10, 99), rand.randint(1, 9))
        )
    elif kind == "fade":
        log.fade(name, some)
    elif kind == "restore":
        log.restore(name, some)
    elif kind == "forget":
        log.forget(name, rand.choice(living))
    elif kind == "change":
        log.change(name, rand.choice(living), merge=rand.random() < 0.5)
    elif kind == "refresh":
        log.refresh(name, some)
    elif kind == "end" and rand.random() < 0.1:
        log.forget_session(name)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32 - 1))
def test_a_directory_kept_in_batches_of_any_size_is_the_one_rebuilt_from_the_first_event(make_store, server_url, seed):
    rand = random.Random(seed)
    log = Log(make_store(tenant=f"tenant-{seed}-{time.time_ns()}"), server_url)
    for _ in range(rand.randint(5, 40)):
        step(log, rand)
        if rand.random() < 0.4:
            batch = rand.choice((1, 2, 3, 7, 2_000))
            assert Projector(log.database, log.keyring, log.directory, batch_events=batch).catch_up(soon())
            assert log.found() == log.expected()
    assert log.projector.catch_up(soon())
    assert log.found() == log.expected()
    kept = log.directory.digest()
    assert log.projector.rebuild(soon())
    assert log.directory.digest() == kept
    assert log.found() == log.expected()
    log.store.close()
