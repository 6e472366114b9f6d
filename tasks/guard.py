"""One bad item never takes its neighbours along."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from tasks.photo_faces import PhotoFaces

log = logging.getLogger("visage")
Item = TypeVar("Item")
Result = TypeVar("Result")


def halving(
    items: Sequence[Item],
    work: Callable[[Sequence[Item]], Sequence[Result]],
    give_up: Callable[[Item, Exception], Result],
) -> Sequence[Result]:
    """Run `work` on all items; on an error, on halves, down to the item that fails alone, which is given up."""
    if not items:
        return []
    try:
        return work(items)
    except Exception as error:
        if len(items) == 1:
            return [give_up(items[0], error)]
        middle = len(items) // 2
        return [*halving(items[:middle], work, give_up), *halving(items[middle:], work, give_up)]


def given_up(photo: PhotoFaces, stage: str, error: Exception) -> PhotoFaces:
    """Turn an unexpected error into a failure of the photo that caused it."""
    log.warning("%s: %s failed", photo.key, stage, exc_info=error)
    message = f"{photo.key}: {type(error).__name__} in {stage}: {error}. It is tried again at the next run."
    return photo.failed(stage, "error", message, retryable=True)


def guarded(
    stage: str, photos: Sequence[PhotoFaces], work: Callable[[Sequence[PhotoFaces]], list[PhotoFaces]]
) -> list[PhotoFaces]:
    """Run a stage's `work`, which keeps the order, on the photos that are still good. Its time is shared out evenly."""
    good = [photo for photo in photos if photo.failure is None and not photo.shared]
    start = time.perf_counter()
    results = halving(good, work, lambda photo, error: given_up(photo, stage, error))
    share = (time.perf_counter() - start) / max(len(good), 1)
    done = iter(results)
    return [next(done).timed(stage, share) if photo.failure is None and not photo.shared else photo for photo in photos]
