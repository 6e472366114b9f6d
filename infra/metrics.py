"""Prometheus metrics, read from the catalog: they survive restarts, and whoever asks gets the same.

What is done and missing comes from the last audit, what waits and what has failed from an index: asking stays cheap however
large the catalog is.
"""

import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from infra.catalog import collections
from infra.catalog.database import Catalog
from infra.catalog.tables.schema import Collection, Failure, Image, ImageStatus, Run, RunStatus, Schedule

LIVE = (ImageStatus.PENDING, ImageStatus.FAILED)


class _Gauges:
    """The gauges of one answer."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"visage_{name}", text, labels, registry=registry)

        self.images = gauge("images", "Images by state; done and missing as of the last audit", "collection", "status")
        self.faces = gauge("faces", "Faces, as of the last audit", "collection")
        self.failures = gauge("failures", "Failures not overcome", "collection", "stage", "reason")
        self.queue = gauge("queue_images", "Images waiting to be processed", "collection")
        self.oldest = gauge("oldest_pending_seconds", "Age of the image that waits longest; 0: none", "collection")
        self.runs = gauge("runs", "Runs by how they ended", "collection", "status")
        self.at_work = gauge("runs_at_work", "Runs at work now", "collection")
        self.end = gauge("last_run_end_timestamp_seconds", "When the last run ended", "collection")
        self.status = gauge("last_run_status", "1 for how the last run ended", "collection", "status")
        self.processed = gauge("last_run_images", "Images that the last run processed", "collection")
        self.seconds = gauge("last_run_step_seconds", "How long the steps of the last run took", "collection", "step")
        self.stages = gauge(
            "last_run_stage_seconds", "Time that the last run's workers spent per stage", "collection", "stage"
        )
        self.paused = gauge("schedule_paused", "1 while the schedule rests", "schedule", "collection")
        self.gpu_used = gauge("gpu_memory_used_bytes", "Memory in use of this machine's GPUs", "gpu")
        self.gpu_total = gauge("gpu_memory_total_bytes", "Memory of this machine's GPUs", "gpu")


def render(catalog: Catalog) -> bytes:
    """All metrics in Prometheus' text format."""
    registry = CollectorRegistry()
    gauges = _Gauges(registry)
    with catalog.read() as session:
        for collection in collections.every(session):
            _fill(session, gauges, collection)
        for schedule, name in session.execute(
            select(Schedule, Collection.name).join(Collection, Collection.id == Schedule.collection_id)
        ):
            gauges.paused.labels(schedule.name, name).set(schedule.paused)
    for gpu, used, total in gpu_memory():
        gauges.gpu_used.labels(gpu).set(used)
        gauges.gpu_total.labels(gpu).set(total)
    return generate_latest(registry)


def serve_metrics(catalog: Catalog, host: str, port: int) -> ThreadingHTTPServer:
    """Answer GET /metrics in the background until `shutdown()`, or the end of the process."""

    class Metrics(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/metrics":
                self.send_error(404)
                return
            text = render(catalog)
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE_LATEST)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *arguments: object) -> None:
            """Prometheus asks every few seconds: that is no news."""

    server = ThreadingHTTPServer((host, port), Metrics)
    Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server


def _fill(session: Session, gauges: _Gauges, collection: Collection) -> None:
    name, of_it = collection.name, Image.collection_id == collection.id
    for status in LIVE:
        count = session.scalar(select(func.count()).where(of_it, Image.status == status.value)) or 0
        gauges.images.labels(name, status.value).set(count)
        if status is ImageStatus.PENDING:
            gauges.queue.labels(name).set(count)
    since = session.scalar(select(func.min(Image.pending_since)).where(of_it, Image.status == "pending"))
    gauges.oldest.labels(name).set(0 if since is None else (datetime.now(UTC) - since).total_seconds())
    by_reason = select(Failure.stage, Failure.reason, func.count()).where(
        Failure.collection_id == collection.id, Failure.resolved_at.is_(None)
    )
    for stage, reason, count in session.execute(by_reason.group_by(Failure.stage, Failure.reason)):
        gauges.failures.labels(name, stage, reason).set(count)
    of_runs = select(Run.status, func.count()).where(Run.collection_id == collection.id).group_by(Run.status)
    ended = dict(session.execute(of_runs).tuples().all())
    gauges.at_work.labels(name).set(ended.pop(RunStatus.RUNNING.value, 0))
    for how, count in ended.items():
        gauges.runs.labels(name, how).set(count)
    last = session.scalar(
        select(Run)
        .where(Run.collection_id == collection.id, Run.finished_at.is_not(None))
        .order_by(Run.finished_at.desc())
        .limit(1)
    )
    if last is not None and last.finished_at is not None:
        gauges.end.labels(name).set(last.finished_at.timestamp())
        for how in RunStatus:
            gauges.status.labels(name, how.value).set(how == last.status)
    _fill_from_counts(session, gauges, collection)


def _fill_from_counts(session: Session, gauges: _Gauges, collection: Collection) -> None:
    """What the last run of the whole collection that got to its end has counted."""
    done = Run.status.in_([RunStatus.DONE.value, RunStatus.DONE_WITH_FAILURES.value])
    whole = Run.collection_id == collection.id, Run.after_key.is_(None), Run.through_key.is_(None)
    counts = session.scalar(select(Run.counts).where(*whole, done).order_by(Run.id.desc()).limit(1))
    if counts is None:
        return
    gauges.processed.labels(collection.name).set(counts.get("processed", 0))
    for step, seconds in counts.get("seconds", {}).items():
        gauges.seconds.labels(collection.name, step).set(seconds)
    for stage, seconds in counts.get("stage_seconds", {}).items():
        gauges.stages.labels(collection.name, stage).set(seconds)
    audited = counts.get("audited")
    if audited:
        gauges.faces.labels(collection.name).set(audited["faces"])
        for status in set(ImageStatus) - set(LIVE):
            gauges.images.labels(collection.name, status.value).set(audited["images"].get(status.value, 0))


def gpu_memory() -> Iterator[tuple[str, int, int]]:
    """(index, bytes in use, bytes) of every NVIDIA GPU of this machine, by its driver's own tool; none without it."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return
    query = [tool, "--query-gpu=index,memory.used,memory.total", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=False)
    for line in answer.stdout.splitlines():
        index, used, total = (part.strip() for part in line.split(","))
        if used.isdigit() and total.isdigit():  # "[N/A]" where the driver does not tell
            yield index, int(used) * 2**20, int(total) * 2**20
