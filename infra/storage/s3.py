"""A bucket on an S3 server (AWS, MinIO, Ceph, R2 ...) as an object store."""

import os
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
)
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from infra.storage.base import (
    PAGE_SIZE,
    AccessDenied,
    Blob,
    Entry,
    InvalidKey,
    ObjectChanged,
    ObjectMissing,
    ObjectTooLarge,
    Page,
    S3Options,
    Store,
    StoreError,
    StoreFull,
    StoreMissing,
    StoreUnavailable,
    ascending,
)

ATTEMPTS = 4  # a request is sent at most so often, with growing pauses between (botocore's "standard" mode)
CONNECT_TIMEOUT = 10  # seconds
READ_TIMEOUT = 60  # seconds without a byte
CHANGED = "the object changed since it was listed. The next run lists it anew."
EXPIRED = (
    "ExpiredToken",
    "ExpiredTokenException",
    "RequestExpired",
    "TokenRefreshRequired",
    "InvalidToken",
)  # some are 400
CONNECTIONS = 32  # threads of one process that may talk to the server at once


@dataclass(frozen=True)
class S3:
    """The objects of a bucket whose keys begin with `prefix`, a directory: "photos" is "photos/". Keys are relative to it.

    A plain value; the connection is made once per process and options, when it is first needed.
    """

    bucket: str
    prefix: str = ""
    options: S3Options = field(default_factory=S3Options)

    def __post_init__(self) -> None:
        if self.prefix and not self.prefix.endswith("/"):
            object.__setattr__(self, "prefix", self.prefix + "/")

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"

    def url(self, key: str) -> str:
        return self.uri + key

    def prefix_of(self, place: Store) -> str | None:
        if not isinstance(place, S3) or place.bucket != self.bucket or not place.prefix.startswith(self.prefix):
            return None
        return place.prefix.removeprefix(self.prefix)

    def list(self, prefix: str = "", start_after: str | None = None) -> Iterator[Page]:
        return ascending(self._pages(prefix, start_after), self.uri)

    def read(self, key: str, max_bytes: int, etag: str | None = None) -> Blob:
        condition = {} if etag is None else {"IfMatch": f'"{etag}"'}
        try:
            blob = self._fetch(key, max_bytes, condition)
        except (HTTPClientError, BotoCoreError) as error:
            raise StoreUnavailable(
                f"{self.url(key)}: only part of the object arrived, {ATTEMPTS} times ({error}). Run again later."
            ) from error
        if etag is not None and blob.etag != etag:  # of a server that does not know If-Match
            raise ObjectChanged(f"{self.url(key)}: {CHANGED}")
        return blob

    def put(self, key: str, data: bytes, content_type: str, metadata: Mapping[str, str] | None = None) -> str:
        with self._errors(key):
            answer = self._client.put_object(
                Bucket=self.bucket,
                Key=self.prefix + key,
                Body=data,
                ContentType=content_type,
                Metadata=dict(metadata or {}),
            )
        return str(answer["ETag"]).strip('"')

    def delete(self, key: str) -> None:
        with self._errors(key):
            answer = self._client.delete_object(Bucket=self.bucket, Key=self.prefix + key)
            if answer.get("DeleteMarker"):  # a bucket with versions only hides what is deleted; ours must be gone
                self._delete_versions(self.prefix + key)

    def exists(self, key: str) -> bool:
        try:
            with self._errors(key):
                self._client.head_object(Bucket=self.bucket, Key=self.prefix + key)
        except ObjectMissing:
            return False
        return True

    @property
    def _client(self) -> Any:
        return _client(self.options)

    def _pages(self, prefix: str, start_after: str | None) -> Iterator[Page]:
        start = {} if start_after is None else {"StartAfter": self.prefix + start_after}
        with self._errors(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=self.prefix + prefix, PaginationConfig={"PageSize": PAGE_SIZE}, **start
            )
            for page in pages:
                # A key that equals the prefix is the empty object by which consoles show a directory.
                yield [self._entry(found) for found in page.get("Contents", []) if found["Key"] != self.prefix]

    def _entry(self, found: Mapping[str, Any]) -> Entry:
        key, etag = found["Key"].removeprefix(self.prefix), found["ETag"].strip('"')
        return Entry(key, etag, found["Size"], found["LastModified"])

    # A connection that breaks while the content comes is no error to botocore's own retries any more.
    @retry(
        retry=retry_if_exception_type((HTTPClientError, BotoCoreError)),
        wait=wait_exponential_jitter(initial=0.1, max=5, jitter=0.5),
        stop=stop_after_attempt(ATTEMPTS),
        reraise=True,
    )
    def _fetch(self, key: str, max_bytes: int, condition: Mapping[str, str]) -> Blob:
        with self._errors(key):
            answer = self._client.get_object(Bucket=self.bucket, Key=self.prefix + key, **condition)
        return self._receive(key, answer, max_bytes)

    def _receive(self, key: str, answer: Mapping[str, Any], max_bytes: int) -> Blob:
        size = answer["ContentLength"]
        with closing(answer["Body"]) as body:
            if size > max_bytes:
                raise ObjectTooLarge(
                    f"{self.url(key)}: {size:,} bytes, more than the {max_bytes:,} allowed. Raise the limit to read it."
                )
            data = body.read()  # botocore raises if fewer bytes arrive than the server announced
        return Blob(data, answer["ETag"].strip('"'), len(data))

    def _delete_versions(self, full_key: str) -> None:
        pages = self._client.get_paginator("list_object_versions").paginate(Bucket=self.bucket, Prefix=full_key)
        for page in pages:
            for version in [*page.get("Versions", []), *page.get("DeleteMarkers", [])]:
                if version["Key"] == full_key:
                    self._client.delete_object(Bucket=self.bucket, Key=full_key, VersionId=version["VersionId"])

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        """Turn what boto3 raises into store errors that name the object."""
        where = self.url(key)
        try:
            yield
        except ClientError as error:
            raise _refusal(error, where) from error
        except (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError, ProfileNotFound) as error:
            raise AccessDenied(
                f"{where}: {error}. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile."
            ) from error
        except ParamValidationError as error:
            raise InvalidKey(f"{where}: {error}") from error
        except (BotoCoreError, HTTPClientError) as error:
            raise StoreUnavailable(
                f"{where}: {error}. Is the server up, the endpoint right? Run again later."
            ) from error


def _refusal(error: ClientError, where: str) -> StoreError:
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    said = f"{status} {code}: {error.response.get('Error', {}).get('Message', '')}"
    kind: type[StoreError]
    match code, status:
        case "NoSuchBucket", _:
            kind, advice = StoreMissing, "there is no such bucket. Check its name and the endpoint."
        case ("NoSuchKey" | "NoSuchVersion", _) | (_, 404):
            kind, advice = ObjectMissing, "there is no such object. Removed since it was listed?"
        case _, 412:
            kind, advice = ObjectChanged, CHANGED
        case "InvalidObjectState", _:
            kind, advice = AccessDenied, "the object is archived (Glacier). Restore it in the bucket first."
        case "KeyTooLongError", _:
            kind, advice = InvalidKey, "the key is longer than the 1,024 bytes that S3 allows."
        case ("SlowDown" | "RequestTimeout" | "Throttling", _) | (_, 408 | 429 | 500 | 502 | 503 | 504):
            kind, advice = StoreUnavailable, f"the server answered {said}, {ATTEMPTS} times. Run again later."
        case _, 507:
            kind, advice = StoreFull, f"the server answered {said}. Free some room, then run again."
        case ("XMinioStorageFull" | "QuotaExceeded", _):
            kind, advice = StoreFull, f"the server answered {said}. Free some room, then run again."
        case (code, _) if code in EXPIRED:
            kind, advice = AccessDenied, f"the server answered {said}. Renew the credentials, then run again."
        case _, 401 | 403:
            kind, advice = AccessDenied, f"the server answered {said}. Check the credentials and what they may do here."
        case _:
            kind, advice = StoreError, f"the server answered {said}."
    return kind(f"{where}: {advice}")


@lru_cache
def _client(options: S3Options) -> Any:
    # A session of its own: boto3's default one must not be used by two threads at once. Clients may.
    session = boto3.session.Session(
        aws_access_key_id=options.access_key,
        aws_secret_access_key=options.secret_key,
        region_name=options.region,
    )
    config = Config(
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        connect_timeout=CONNECT_TIMEOUT,
        read_timeout=READ_TIMEOUT,
        max_pool_connections=CONNECTIONS,
    )
    return session.client("s3", endpoint_url=options.endpoint, config=config)


os.register_at_fork(after_in_child=_client.cache_clear)  # two processes must not share one connection
