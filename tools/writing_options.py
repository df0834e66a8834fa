"""The options of make_tfrecords.py about how records are written: in goes, in a pipeline, or only read again."""

import functools
import json
import sys
import time
from dataclasses import asdict

from tfdet.data import files
from tfdet.data.stored import verify
from tools.input_options import place

HELP = """
A conversion that was killed, interrupted or out of disk leaves its finished shards in OUT/.partial, which no reader
opens. The same command with --resume goes on from there and ends with the bytes of an uninterrupted run; shards
whose annotations, images or options have changed since are written anew. Records that were in OUT before stay
readable until the new ones are whole.

  # go on after a kill; add images later; read everything again
  python tools/make_tfrecords.py train.txt --classes classes.txt --out tfrecords/mine --resume
  python tools/make_tfrecords.py more.txt --classes classes.txt --out tfrecords/mine --append --val-ratio 0
  python tools/make_tfrecords.py --verify tfrecords/mine
  # as an Apache Beam pipeline; all options this tool does not know are Beam's
  python tools/make_tfrecords.py train.txt --classes classes.txt --out gs://bucket/mine --runner DataflowRunner \\
      --project mine --region europe-west4 --temp_location gs://bucket/tmp
"""


def add_writing_options(parser):
    group = parser.add_argument_group("writing")
    group.add_argument("--resume", action="store_true", help="go on from what an interrupted run had finished")
    group.add_argument(
        "--append", action="store_true", help="add to the records in --out, whose files stay as they are"
    )
    group.add_argument("--verify", type=place, metavar="DIR", help="only read the records in DIR again, every byte")
    group.add_argument("--runner", help="write in an Apache Beam pipeline: DirectRunner, FlinkRunner, SparkRunner, ...")


def check_writing_options(parser, options, others):
    """Ends the program where options cannot be; `others`: what is left on the command line for Beam."""
    if others and not options.runner:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    if options.verify and options.annotations:
        parser.error("--verify reads records that were written; it takes no annotations")
    if not options.verify and not options.annotations:
        parser.error("the following arguments are required: annotations")
    options.beam = [f"--runner={options.runner}", *others] if options.runner else []


def runner_of(options):
    """What `convert` takes as `run`: None for worker processes here."""
    if not options.beam:
        return None
    from tfdet.data.beam import run_in_pipeline

    return functools.partial(run_in_pipeline, arguments=options.beam)


def verify_records(options, make_progress) -> int:
    """What --verify asks for; returns the exit code."""
    start = time.perf_counter()
    bar, progress = make_progress()
    with bar:
        manifest, faults = verify(options.verify, options.workers, progress)
    for fault in faults:
        print(fault)
    splits = manifest["splits"].values()
    summary = {
        "out": str(options.verify),
        "verified": not faults,
        "images": sum(split["num_images"] for split in splits),
        "shards": sum(len(split["shards"]) for split in splits),
        "bytes": sum(shard["bytes"] for split in splits for shard in split["shards"]),
        "faults": [asdict(fault) for fault in faults],
        "seconds": round(time.perf_counter() - start, 2),
    }
    if faults:
        advice = "take the files from a copy, or convert the data set again"
        print(f"damaged files in {options.verify}: {len(faults)}; {advice}", file=sys.stderr)
    else:
        print(f"all {summary['images']} images in {summary['shards']} files are as they were written")
    print(json.dumps(summary))
    return 1 if faults else 0


def explain_interruption(directory) -> str:
    kept = any(name.endswith(".json") for name in files.names(files.join(directory, ".partial")))
    return "; the same command with --resume goes on" if kept else ", nothing was written"
