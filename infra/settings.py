"""Settings: read once at the edge from VISAGE_* environment variables, validated, unknown ones refused."""

import getpass
import json
import os
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from infra.storage import S3Options

PREFIX = "VISAGE_"


class InvalidSettings(ValueError):
    """The environment holds settings that are unknown or do not fit; the message names the variables."""


class Settings(BaseSettings):
    """Where things live and how much of the machine may be used."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True)

    home: Path = Field(Path("~/.visage"), description="Folder of the embedded catalog, crops, logs and tracking.")
    weights: Path = Field(Path("~/.cache/visage/weights"), description="Cache folder of converted weights.")
    database_url: str = Field("", description="SQLAlchemy URL of the catalog; empty: SQLite in the home folder.")
    tracking_uri: str = Field("", description="MLflow tracking and registry URI; empty: SQLite in the home folder.")
    objects_uri: str = Field("", description="Where crops are kept (folder or s3://bucket/prefix); empty: home folder.")
    ray_address: str = Field("", description="Address of an existing Ray cluster; empty: a local one when needed.")
    engine: Literal["auto", "ray", "inline"] = Field(
        "auto", description="auto: Ray Data from `ray_from_images` images on, the same stages in this process below."
    )
    ray_from_images: int = Field(300, ge=1, description="Smallest job that is worth the start of Ray.")
    precision: Literal["auto", "float32"] = Field(
        "auto",
        description="auto: bfloat16 for models that were shown to lose nothing by it, on processors that have it.",
    )
    cpus: int = Field(0, ge=0, description="Processors to use; 0: all of the machine.")
    s3_endpoint_url: str = Field("", description="Endpoint of an S3-compatible server; empty: AWS.")
    s3_region: str = Field("", description="Region; empty: the usual AWS places.")
    s3_access_key: str = Field("", description="Access key; empty: the usual AWS places.")
    s3_secret_key: SecretStr = Field(SecretStr(""), description="Secret key that goes with it.")
    detect_model: str = Field("mtcnn", description="Model that finds the faces.")
    embed_model: str = Field("dlib-resnet", description="Model that makes the embeddings.")
    restore_model: str = Field("real-esrgan-x4plus", description="Model that restores faces; empty: none is restored.")
    describe_models: tuple[str, ...] = Field(
        ("mini-xception", "dlib-age", "dlib-gender"), description="Models that estimate attributes (a JSON list)."
    )
    max_bytes: int = Field(200 * 2**20, ge=1, description="Largest object that is read.")
    max_megapixels: float = Field(200.0, gt=0, description="Largest picture that is decoded.")
    item_seconds: float = Field(900.0, gt=0, description="Longest that one photo may keep one stage busy.")
    upload_bytes: int = Field(
        32 * 2**20, ge=1, description="Largest photograph that the web service takes to search with."
    )
    embedding_key: SecretStr = Field(SecretStr(""), description="Key of encrypted embeddings, 32 bytes in base64.")
    embedding_key_file: str = Field("", description="File that holds the key instead.")
    user: str = Field("", description="Who is at work, for decisions and the audit log; empty: the system's user.")
    detect_long_side: int = Field(1280, ge=64, description="Photos are detected at about this size (pixels).")

    on_problem_command: str = Field("", description="Command that is told, as JSON, when a night was not good.")
    on_problem_webhook: str = Field("", description="URL that is told, as JSON, when a night was not good.")
    metrics_port: int = Field(0, ge=0, le=65535, description="Port of serve-schedules' Prometheus metrics; 0: none.")
    metrics_host: str = Field("127.0.0.1", description="Address that they are served at.")
    log_stderr: bool = Field(False, description="Write the structured log to stderr as well as to the home folder.")

    @model_validator(mode="after")
    def _s3_can_be_reached(self) -> "Settings":
        _ = self.storage_options
        return self

    @property
    def home_folder(self) -> Path:
        return self.home.expanduser().absolute()

    @property
    def acting(self) -> str:
        """Who decides, searches and erases; in a container a user may have a number only."""
        if self.user:
            return self.user
        try:
            return getpass.getuser()
        except (KeyError, OSError):
            return f"uid {os.getuid()}"

    @property
    def weights_folder(self) -> Path:
        return self.weights.expanduser().absolute()

    @property
    def catalog_url(self) -> str:
        return self.database_url or f"sqlite:///{self.home_folder / 'catalog.db'}"

    @property
    def mlflow_uri(self) -> str:
        return self.tracking_uri or f"sqlite:///{self.home_folder / 'mlflow.db'}"

    @property
    def artifacts_folder(self) -> Path:
        return self.home_folder / "artifacts"

    @property
    def crops_uri(self) -> str:
        return self.objects_uri or str(self.home_folder / "objects")

    @property
    def storage_options(self) -> S3Options:
        return S3Options(
            endpoint=self.s3_endpoint_url or None,
            region=self.s3_region or None,
            access_key=self.s3_access_key or None,
            secret_key=self.s3_secret_key.get_secret_value() or None,
        )

    @property
    def cpu_count(self) -> int:
        return self.cpus or len(os.sched_getaffinity(0))


def load_settings() -> Settings:
    """Read the environment.

    Raises:
        InvalidSettings: for a variable that begins with VISAGE_ and is none of ours, or a value that does not fit.
    """
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    unknown = sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known)
    if unknown:
        raise InvalidSettings(
            f"unknown settings in the environment: {', '.join(unknown)}; known: {', '.join(sorted(known))}"
        )
    try:
        return Settings()
    except ValidationError as error:
        unfit = "; ".join(_unfit(e["loc"], e["input"], e["msg"]) for e in error.errors())
        raise InvalidSettings(f"settings in the environment do not fit: {unfit}") from error
    except SettingsError as error:
        raise InvalidSettings(f'{error}: a list is written as JSON, like ["a", "b"]') from error


def environment(settings: Settings) -> dict[str, str]:
    """The environment variables under which another process has the same settings."""

    def text(value: object) -> str:
        if isinstance(value, SecretStr):
            return value.get_secret_value()
        return json.dumps(value) if isinstance(value, tuple | list) else str(value)

    return {PREFIX + name.upper(): text(getattr(settings, name)) for name in settings.model_fields_set}


def _unfit(location: tuple[str | int, ...], value: object, message: str) -> str:
    """What is wrong with one variable, or, without a location, with several together: then none of their values is shown."""
    return f"{PREFIX}{str(location[0]).upper()}={value!r}: {message}" if location else message
