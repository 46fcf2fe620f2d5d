"""Applying the same log gives the same bytes in every process, whatever its hash seed (I11)."""

import os
import subprocess
import sys

SCRIPT = """
import random, hashlib
from actorgrid.replication.entry import ClientMark, Entry, LogRecord, decode_record, encode_record, read_head
from actorgrid.replication.sessions import SessionTable

rng = random.Random(7)
table, digest, lsn = SessionTable(5), hashlib.sha256(), 0
for step in range(400):
    clients = [f"client-{rng.randrange(12):09}".encode() for _ in range(rng.randint(1, 4))]
    clients = list(dict.fromkeys(clients))
    entries = [
        Entry(rng.randrange(len(clients)), step, (1,) * (rng.random() < 0.3), 7, f"Box\\0{step % 9}", 0, b"r" * (step % 5), [(b"k", b"v")])
        for _ in range(rng.randint(1, 5))
    ]
    record = LogRecord(1, lsn + 1, step, [ClientMark(c, max(0, step - 20), max(0, step - 30)) for c in clients], entries)
    lsn = record.last_lsn
    data = encode_record(record)
    digest.update(data)
    table.apply(decode_record(data, read_head(data)))
    if step % 50 == 49:
        for client, image in table.take_checkpoint()[0]:
            digest.update(client + image)
digest.update(repr((table.evicted_lsn, [c for c, _ in table])).encode())
print(digest.hexdigest())
"""


def test_replaying_one_log_gives_the_same_bytes_under_every_hash_seed():
    digests = {
        subprocess.run([sys.executable, "-c", SCRIPT], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True).stdout
        for seed in ("0", "1", "4242")
    }
    assert len(digests) == 1
    assert len(next(iter(digests)).strip()) == 64
