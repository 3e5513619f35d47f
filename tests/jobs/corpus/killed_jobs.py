"""Runs a job again and again in forked copies of itself, and kills them: a script of its own.

    python killed_jobs.py MODEL INPUT WORK KILLS KILLS_AT_CALLS SEED

All is imported once, and torch has one thread, which a fork bears: a start then takes a fraction of
a second. Prints as JSON how often it killed where, after each finished output was like the
undisturbed one.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import torch

import c2v_engine
from c2v_engine.jobs.corpus.folder.verify import verify_job
from c2v_engine.jobs.corpus.job import CorpusJob, CorpusOptions

# Calls by which a job changes its folder.
CALLS = ("open", "replace", "write", "pwrite", "fsync", "unlink", "truncate", "ftruncate")
KEPT = ("part-", "rejected")


def run_job(model, sources, folder):
    """One start of the job, to its end."""
    options = CorpusOptions(
        id_column="id", keep=("n",), shard_rows=16, on_error="skip", deterministic=True
    )
    with CorpusJob(sources, folder, options, note=lambda line: None) as job:
        engine = c2v_engine.Causal2Vec.from_pretrained(model, device="cpu", deterministic=True)
        job.run(engine)


class Fuse:
    """Counts the calls that change the folder, and kills the process at one of them.

    Args:
        at: the call's number from 0; None never kills.
        after: whether the call is done first.
    """

    def __init__(self, at, after):
        self.at, self.after, self.count = at, after, 0
        for name in CALLS:
            setattr(os, name, self.wrap(getattr(os, name)))

    def wrap(self, call):
        def counted(*arguments, **options):
            number, self.count = self.count, self.count + 1
            if number == self.at and not self.after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = call(*arguments, **options)
            if number == self.at:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return counted


def fork(work):
    """Do ``work`` in a forked copy; its process id."""
    child = os.fork()
    if child:
        return child
    try:
        work()
        os._exit(0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(9)


def ended(child):
    """Wait; True for an end of its own, False for a kill. Any other end is an error."""
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, -signal.SIGKILL):
        sys.exit(f"a job ended with {code}")
    return code == 0


def contents(folder):
    """The bytes of all that is kept of a job."""
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name.startswith(KEPT)}


def main(model, source, work, kills, kills_at_calls, seed):
    chance = random.Random(seed)
    sources = [source]
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    c2v_engine.Causal2Vec.from_pretrained(model, device="cpu", deterministic=True).close()

    def started(folder, fuse=None):
        def job():
            if fuse is not None:
                Fuse(*fuse)
            run_job(model, sources, folder)

        return fork(job)

    undisturbed = work / "undisturbed"
    report = work / "calls"

    def counting():
        fuse = Fuse(None, False)
        run_job(model, sources, undisturbed)
        count = fuse.count
        report.write_text(str(count))

    start = time.monotonic()
    assert ended(fork(counting))
    seconds = time.monotonic() - start
    calls = int(report.read_text())
    wanted = contents(undisturbed)
    done = Counter()
    finished = 0

    def check(folder):
        nonlocal finished
        found = contents(folder)
        assert found.keys() == wanted.keys(), sorted(found.keys() ^ wanted.keys())
        for name in wanted:
            assert found[name] == wanted[name], f"{folder / name} differs"
        problems = verify_job(folder).problems
        assert not problems, problems
        finished += 1

    number, folder = 0, work / "random-0"
    while done["random"] < kills:
        child = started(folder)
        time.sleep(chance.uniform(0.0, seconds))
        os.kill(child, signal.SIGKILL)
        if ended(child):
            check(folder)
            number += 1
            folder = work / f"random-{number}"
        else:
            done["random"] += 1
    while not ended(started(folder)):
        pass
    check(folder)

    step = max(1, calls // kills_at_calls)
    for at in range(0, calls, step):
        folder = work / f"call-{at}"
        if not ended(started(folder, (at, chance.random() < 0.5))):
            done["at calls"] += 1
        assert ended(started(folder))
        check(folder)
    print(json.dumps({**done, "finished": finished, "calls": calls}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), *map(int, sys.argv[4:]))
