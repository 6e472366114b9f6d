"""The structured log: a JSON line per event, with run, stage and key, in the home folder and on stderr when asked.

Events of our own modules and of standard loggers under `visage` go the same way. The file is opened anew when it has been
moved, so that logrotate can take care of it.
"""

import logging
import sys
from logging.handlers import WatchedFileHandler
from typing import Any

import structlog
from structlog.types import Processor

from infra.settings import Settings

ROOT = "visage"
_SHARED: list[Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
]


def configure(settings: Settings) -> None:
    """Send the events of this process where the settings say. May be called again, with others."""
    structlog.configure(
        processors=[*_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=_SHARED,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            structlog.processors.EventRenamer("event"),
            structlog.processors.JSONRenderer(ensure_ascii=False, default=str),
        ],
    )
    folder = settings.home_folder / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    handlers: list[logging.Handler] = [WatchedFileHandler(folder / "visage.jsonl", encoding="utf-8")]
    if settings.log_stderr:
        handlers.append(logging.StreamHandler(sys.stderr))
    root = logging.getLogger(ROOT)
    for former in [*root.handlers]:
        root.removeHandler(former)
        former.close()
    for handler in handlers:
        handler.setFormatter(formatter)
        root.addHandler(handler)
    root.setLevel(logging.INFO)
    root.propagate = False


def logger() -> Any:
    """The logger for events: `logger().info("what happened", key=...)`."""
    return structlog.stdlib.get_logger(ROOT)
