"""Patience: what fails for a reason that passes by itself is tried again, with growing pauses and an end."""

from tenacity import retry, retry_if_exception, stop_after_delay, wait_exponential_jitter

SECONDS = 120  # as long as a database or object store needs to restart and recover


def passes(error: BaseException) -> bool:
    """Whether the same may succeed later without anybody doing anything: errors of ours say so by `retryable`."""
    return bool(getattr(error, "retryable", False))


# For functions that read, or that change nothing if they are done twice: they run again from their start.
patient = retry(
    retry=retry_if_exception(passes),
    wait=wait_exponential_jitter(initial=0.2, max=15, jitter=1),
    stop=stop_after_delay(SECONDS),
    reraise=True,
)
