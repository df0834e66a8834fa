"""The conversion as an Apache Beam pipeline: each shard is written whole by one of its workers.

The same function writes the same bytes as in a local run; every worker has to see the images and the output folder
under the names they have here, so on several machines both lie on a shared disk or in a bucket (gs://, s3://).
Needs `pip install tfdet[beam]`.
"""

import os
from dataclasses import replace

from tfdet.data import files
from tfdet.data.errors import DataError
from tfdet.data.shards import Job, join, write


def run_in_pipeline(jobs, folder, progress, *, arguments):
    """Writes the shards of some jobs into a folder; `convert` takes it as `run`.

    Args:
        arguments: Beam's command line, such as ["--runner=DirectRunner", "--direct_num_workers=2"].
    Raises:
        DataError: Apache Beam is not installed, it does not take these options, or the pipeline failed.
    """
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise DataError("--runner", f"Apache Beam cannot be imported ({error})", "pip install tfdet[beam]") from error
    total = sum(len(job.listings) for job in jobs)
    progress(0, total)
    try:
        with beam.Pipeline(options=PipelineOptions(list(arguments))) as pipeline:
            _ = (
                pipeline
                | "shards" >> beam.Create(jobs, reshuffle=True)
                | "write" >> beam.Map(write_whole_shard, folder=str(folder))
            )
    except Exception as error:  # of the runner's own kinds, or what a worker raised
        raise DataError("--runner", f"the pipeline failed ({_first_line(error)})", "see Beam's messages") from error
    progress(total, total)


def write_whole_shard(job: Job, folder: str):
    """What a Beam worker does."""
    path = files.join(folder, f"{job.key}.0.{os.getpid()}.tmp")
    join(folder, job.key, [write(replace(job, path=path), lambda: None)])


def _first_line(error) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
