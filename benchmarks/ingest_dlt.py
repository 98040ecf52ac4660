"""The same pages through dlt's merge, for benchmarks/ingest.py: run by the Python of an environment that has dlt.

    python benchmarks/ingest_dlt.py PAGES DSN

dlt as its documentation shows it: one resource with a primary key, write disposition merge, defaults everywhere. It
unnests the order lines into a child table; it keeps no versions and no tokens.
"""

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["RUNTIME__DLTHUB_TELEMETRY"] = "false"
os.environ["RUNTIME__LOG_LEVEL"] = "ERROR"

import dlt  # type: ignore[import-not-found]
import orjson


def main() -> None:
    pages, dsn = Path(sys.argv[1]), sys.argv[2]

    @dlt.resource(name="trades", primary_key="tid", write_disposition="merge")
    def trades() -> Iterator[list[dict[str, Any]]]:
        with pages.open("rb") as file:
            for page in file:
                yield orjson.loads(page)["trades"]["trade"]

    with tempfile.TemporaryDirectory() as folder:
        pipeline = dlt.pipeline(
            "ingest",
            pipelines_dir=folder,
            destination=dlt.destinations.postgres(dsn),
            dataset_name="bench_dlt",
            progress=None,
        )
        before = resource.getrusage(resource.RUSAGE_SELF)
        started = time.perf_counter()
        pipeline.run(trades())
        seconds = time.perf_counter() - started
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cpu = usage.ru_utime + usage.ru_stime - before.ru_utime - before.ru_stime
    print(
        json.dumps(
            {"seconds": seconds, "cpu": cpu, "peak_mb": usage.ru_maxrss / 1024,
             "version": dlt.__version__}
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
