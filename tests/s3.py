"""A real S3 server for tests: moto in a process of its own."""

import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import boto3
import pytest

from infra.storage import S3Options
from infra.storage.s3 import S3

# It serves until its standard input closes, so that it never outlives the tests, not even when they are killed.
PROGRAM = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(sys.argv[1], port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@contextmanager
def moto_server(address: str = "127.0.0.1") -> Iterator[S3Options]:
    """Run an empty S3 server on an address of this machine; give the options that reach it."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            port = int(process.stdout.readline())
            yield S3Options(f"http://{address}:{port}", "us-east-1", "testing", "testing")
        finally:
            process.stdin.close()


@pytest.fixture(scope="session")
def s3_options() -> Iterator[S3Options]:
    """How to reach the S3 server of this test session."""
    with moto_server() as options:
        yield options


@pytest.fixture
def bucket(s3_options: S3Options) -> S3:
    """A new, empty bucket as a store."""
    store = S3(f"test-{uuid.uuid4().hex}", options=s3_options)
    client(s3_options).create_bucket(Bucket=store.bucket)
    return store


def client(options: S3Options) -> "boto3.client":
    """A plain boto3 client, for what a store does not do."""
    return boto3.session.Session(options.access_key, options.secret_key, region_name=options.region).client(
        "s3", endpoint_url=options.endpoint
    )
