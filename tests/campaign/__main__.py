"""Kills a job again and again until it ends, and compares its files with those of a job that was left alone.

    python -m tests.campaign JOB [--kills 100] [--seconds 0 10] [--seed 0] [--inside | --bucket | --processes 2]
        [--folder DIR] [--out FILE.json]

JOB is one of bank, isp, compare, pretrain, prune, sweep. Half of the kills come at a random time after a run's first
write, half at a random change of the disk (a file opened to write, renamed, removed; a fault point of the library). A
killed run is started again in its folder until the job ends; then the files are compared, and the job begins anew in
another folder until there were enough kills. `kill -9` is what kills. The processes are forked from one that has all
modules loaded.

With `--inside` all runs are in one process, and a kill is an exception after which every change of the disk is refused:
hundreds of them take minutes. With `--bucket` the runs write to the strict bucket of `tests.bucket`, with errors,
timeouts and stale listings (`tests.campaign.flaky`); a run that says in one line that the bucket failed is started
again, as one that was killed. With `--processes 2` two processes share each run, and either of them is killed.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import shutil
import sys
import tempfile
import time
import warnings

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), "mvp_jax-campaign-cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
warnings.filterwarnings("ignore", message=".*fork.*")

from tests.campaign import comparing, jobs, running


def place(ended):
    """The kind of place at which a run was killed: what it did last, and where."""
    point, _, path = ended.place.partition(": ")
    parts = [part for part in path.split("/") if not part.startswith(".tmp-")]
    return f"{point} in {parts[0] if len(parts) > 1 else 'the folder itself'}"


def campaign(job, folder, *, kills, seconds, seed, form="", most=40):
    """Kills a job until there were enough kills, and returns what is known of it.

    Args:
        job: its name.
        folder: an empty folder for the runs.
        kills: how many kills.
        seconds: shortest and longest time to a kill; `None`: up to that of the run that is left alone.
        seed: of the random moments.
        form: how runs are made: `inside`, `bucket`, `processes`; empty: in a process each.
        most: after so many kills of one job the next run is left alone, so that it ends.
    """
    generator, log = random.Random(f"{job} {seed}"), folder / "log"
    inside = form == "inside"
    forms = {"": running.run_once, "bucket": running.run_in_bucket, "processes": running.run_pair}
    run = running.Inside(folder).run if inside else forms[form]
    alone = running.run_once if form == "bucket" else run  # what is in a bucket must be as in a folder
    for name in ("first", "whole"):  # the first compiles
        whole = alone(job, folder / name, log)
        if whole.how != "done":
            raise SystemExit(f"{job} {whole.how} without a kill: {log.read_text()[-2000:]}")
    shutil.rmtree(folder / "first")
    found = {"job": job, "form": form, "seed": seed}
    found |= {"kills": 0, "at changes": 0, "jobs ended": 0, "runs": 0, "refusals": 0, "losses": []}
    found |= {"changes": whole.changes, "seconds": round(whole.seconds, 2)}
    places, number, begun = collections.Counter(), 0, time.monotonic()
    while found["kills"] < kills:
        number += 1
        work, here = folder / f"killed-{number}", 0
        while True:
            more = here < most and found["kills"] < kills
            wanted = running.draw(generator, whole, seconds, inside=inside) if more else {}
            ended = run(job, work, log, **wanted)
            found["runs"] += 1
            if ended.how == "failed" or (ended.how == "refused" and form != "bucket"):
                found["losses"].append(f"job {number}: a run failed: {log.read_text()[-1500:]}")
            if ended.how == "refused" and form == "bucket":  # the bucket failed, and the run said so
                found["refusals"] += 1
                continue
            if ended.how != "killed":
                break
            here += 1
            found["kills"] += 1
            found["at changes"] += "at" in wanted
            places[place(ended)] += 1
        found["jobs ended"] += ended.how == "done"
        if form == "bucket":
            work = comparing.unpacked(work)
        wrong = comparing.differences(folder / "whole", work)
        wrong += [f"{name} is left behind" for name in comparing.left_behind(work)]
        found["losses"] += [f"job {number} after {here} kills: {line}" for line in wrong]
        if not wrong:
            shutil.rmtree(work)
        print(f"{job}: {found['kills']} kills, {number} jobs, {len(found['losses'])} losses", flush=True)
    return found | {"places": dict(places.most_common()), "minutes": round((time.monotonic() - begun) / 60, 1)}


def main(argv=None):
    """Returns 1 if anything was lost or left behind."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__.split("\n")[0])
    parser.add_argument("job", choices=[*jobs.JOBS, "all"])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seconds", type=float, nargs=2, default=None)
    parser.add_argument("--seed", type=int, default=0)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--inside", action="store_const", dest="form", const="inside", default="")
    how.add_argument("--bucket", action="store_const", dest="form", const="bucket")
    how.add_argument("--processes", type=lambda n: {"2": "processes"}[n], dest="form", metavar="2")
    parser.add_argument("--folder", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path)
    given = parser.parse_args(argv)
    running.import_all()
    lost = 0
    for job in jobs.JOBS if given.job == "all" else [given.job]:
        folder = pathlib.Path(tempfile.mkdtemp(prefix=f"campaign-{job}-", dir=given.folder))
        found = campaign(job, folder, kills=given.kills, seconds=given.seconds, seed=given.seed, form=given.form)
        print(json.dumps(found, indent=1))
        if given.out:
            with given.out.open("a") as file:
                file.write(json.dumps(found) + "\n")
        lost += len(found["losses"])
        if not found["losses"]:
            shutil.rmtree(folder)
    return 1 if lost else 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # threads of Orbax that were stopped inside would wait for minutes for one another
