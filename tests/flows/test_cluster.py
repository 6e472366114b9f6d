"""The same night on a Ray cluster of several nodes, with photographs in S3 and the catalog in PostgreSQL."""

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import func, select

from infra.catalog import collections
from infra.catalog.database import Catalog
from infra.catalog.queries import views
from infra.catalog.tables.schema import Face, Image, Restoration, Run, RunStatus
from infra.settings import PREFIX
from infra.storage import S3Options
from infra.storage.base import LITTER
from infra.storage.s3 import S3
from tests.cluster import Cluster, ray_cluster
from tests.namespaces import machines, why_not
from tests.portraits import jpeg, mirrored, portrait
from tests.s3 import client, moto_server

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]
RUN = [sys.executable, "-c", "from flows.cli import main; main()", "run", "archive"]
PHOTOS = 96
PROCESSES, NETWORKS, GPUS = "processes", "networks", "gpus"


@dataclass(frozen=True)
class Site:
    """A cluster, and how its machines reach the photographs."""

    cluster: Cluster
    s3: S3Options


@pytest.fixture
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    """Give two nodes for work: processes side by side, each in a network of its own, or with a GPU each (so they say)."""
    kind = getattr(request, "param", PROCESSES)
    if kind != NETWORKS:
        with ray_cluster(workers=2, gpus=int(kind == GPUS)) as cluster:
            yield Site(cluster, request.getfixturevalue("s3_options"))
        return
    if reason := why_not():
        pytest.skip(reason)
    with machines(3) as (here, others), moto_server(here) as s3, ray_cluster(workers=2, machines=others) as cluster:
        yield Site(cluster, s3)


@pytest.fixture
def bucket(site: Site) -> S3:
    store = S3(f"test-{uuid.uuid4().hex}", options=site.s3)
    client(site.s3).create_bucket(Bucket=store.bucket)
    return store


@pytest.fixture
def environment(
    fresh_catalog_url: "object", bucket: S3, site: Site, tmp_path: Path, weights_dir: Path, tracking_uri: str
) -> dict[str, str]:
    """A collection of photographs in S3 with its catalog in PostgreSQL; crops go to S3 as well."""
    catalog_url = fresh_catalog_url("postgresql")  # type: ignore[operator]
    for i in range(PHOTOS):
        picture = portrait() if i % 2 else mirrored(300)
        bucket.put(f"photos/{i:03}.jpg", jpeg(picture) + b"%d" % i, "image/jpeg")
    catalog = Catalog(catalog_url)
    with catalog.write() as session:
        collections.add(session, "archive", f"s3://{bucket.bucket}/photos", [], list(LITTER), [])
    catalog.close()
    settings = {
        "HOME": tmp_path / "home",
        "WEIGHTS": weights_dir,
        "TRACKING_URI": tracking_uri,
        "DATABASE_URL": catalog_url,
        "OBJECTS_URI": f"s3://{bucket.bucket}/crops",
        "S3_ENDPOINT_URL": site.s3.endpoint,
        "S3_REGION": site.s3.region,
        "S3_ACCESS_KEY": site.s3.access_key,
        "S3_SECRET_KEY": site.s3.secret_key,
        "RESTORE_MODEL": "",
    }
    outside = {name: value for name, value in os.environ.items() if not name.startswith((PREFIX, "PREFECT_"))}
    return outside | {PREFIX + name: str(value) for name, value in settings.items()}


def on(cluster: Cluster, environment: dict[str, str]) -> dict[str, str]:
    return cluster.environment | environment | {f"{PREFIX}RAY_ADDRESS": cluster.address}


def done(catalog: Catalog) -> int:
    with catalog.read() as session:
        return session.scalar(select(func.count()).where(Image.status == "done")) or 0


def check_all_is_there(catalog: Catalog, bucket: S3) -> None:
    """Every photo has its one face, with its crop in S3, and no crop lies there that no face refers to."""
    with catalog.read() as session:
        assert done(catalog) == PHOTOS
        faces = views.faces(session, "archive", None, 0.0, 10 * PHOTOS)
        assert sorted(key for face in faces for key in face.keys) == [f"{i:03}.jpg" for i in range(PHOTOS)]
        crops = {*session.scalars(select(Face.crop_key)), *session.scalars(select(Restoration.crop_key))}
    stored = {entry.key.removeprefix("crops/") for page in bucket.list("crops/") for entry in page}
    assert stored == crops


@pytest.mark.parametrize("site", [PROCESSES, NETWORKS, GPUS], indirect=True)
def test_a_node_that_dies_in_the_middle_costs_no_result(site: Site, environment: dict[str, str], bucket: S3) -> None:
    catalog, cluster = Catalog(environment[f"{PREFIX}DATABASE_URL"]), site.cluster
    command = [*cluster.on_head, *RUN]
    with subprocess.Popen(
        command, env=on(cluster, environment), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as run:
        while not done(catalog) and run.poll() is None:
            time.sleep(0.1)
        died_at = done(catalog)
        cluster.kill(cluster.nodes[-1])
        said, _ = run.communicate(timeout=900)
    assert run.returncode == 0, said.decode()
    assert 0 < died_at < PHOTOS
    check_all_is_there(catalog, bucket)
    with catalog.read() as session:
        [only] = session.scalars(select(Run))
    assert (only.status, only.counts["engine"], only.counts["failed"]) == (RunStatus.DONE, "ray", {})
    catalog.close()


def test_two_flow_runs_share_a_collection_and_do_every_photo_once(environment: dict[str, str], bucket: S3) -> None:
    catalog = Catalog(environment[f"{PREFIX}DATABASE_URL"])
    runs = [
        subprocess.Popen(
            [*RUN, "--part", f"{part}/2"],
            env=environment | {f"{PREFIX}ENGINE": "inline", f"{PREFIX}HOME": environment[f"{PREFIX}HOME"] + str(part)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for part in (1, 2)
    ]
    outcomes = [(run.communicate(timeout=600)[0].decode(), run.returncode) for run in runs]
    assert [code for _, code in outcomes] == [0, 0], outcomes
    check_all_is_there(catalog, bucket)
    with catalog.read() as session:
        left, right = session.scalars(select(Run).order_by(Run.id))
    assert (left.counts["processed"], right.counts["processed"]) == (PHOTOS / 2, PHOTOS / 2)
    assert max(left.started_at, right.started_at) < min(left.finished_at, right.finished_at)  # side by side
    catalog.close()
