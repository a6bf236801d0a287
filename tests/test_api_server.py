"""medad's own Prefect server: transactions of SQLite wait for each other."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Two that read, and then write what they have read, each while the other one is open.
COUNT = """
import asyncio, sys
from prefect.server.database.configurations import AioSqliteConfiguration
from sqlalchemy import text
from flows.api_server import let_writers_wait

async def add_one(database, engine, started):
    session = await database.session(engine)
    async with session, database.begin_transaction(session):
        value = (await session.execute(text("SELECT value FROM counts"))).scalar()
        started.set()
        await asyncio.sleep(1)
        await session.execute(text(f"UPDATE counts SET value = {value + 1}"))

async def main():
    database = AioSqliteConfiguration(connection_url=f"sqlite+aiosqlite:///{sys.argv[1]}")
    engine = await database.engine()
    async with engine.connect() as connection:
        await connection.execute(text("CREATE TABLE counts (value INTEGER)"))
        await connection.execute(text("INSERT INTO counts VALUES (0)"))
        await connection.commit()
    started = asyncio.Event()
    first = asyncio.create_task(add_one(database, engine, started))
    await started.wait()
    await asyncio.gather(first, add_one(database, engine, started))
    async with engine.connect() as connection:
        print((await connection.execute(text("SELECT value FROM counts"))).scalar())

if sys.argv[2] == "wait":
    let_writers_wait()
asyncio.run(main())
"""


@pytest.mark.parametrize(("way", "outcome"), [("wait", "2"), ("as Prefect has it", "database is locked")])
def test_who_writes_what_was_read_waits_for_others_who_do(way, outcome, tmp_path):
    command = [sys.executable, "-c", COUNT, str(tmp_path / "counts.db"), way]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert outcome in done.stdout + done.stderr
    assert (done.returncode == 0) == (way == "wait")
