"""How much anybody may ask for: token buckets in memory, for one process."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from flows.service.problems import Problem

MOST_CLIENTS = 10_000  # buckets that are remembered; the one used longest ago goes first


@dataclass(frozen=True)
class Rate:
    """`burst` requests at once, then `per_second` for ever."""

    burst: int
    per_second: float


@dataclass(frozen=True)
class Rates:
    """A wall of thumbnails is many small requests; a search by photo is a second of work; guessing tokens is neither."""

    requests: Rate = Rate(1500, 200)
    searches: Rate = Rate(20, 0.5)
    refusals: Rate = Rate(20, 0.2)


class Limiter:
    """Buckets of one rate, by whoever asks."""

    def __init__(self, rate: Rate, what: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate, self.what, self.clock = rate, what, clock
        self.lock = threading.Lock()
        self.buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # client: (left, when)

    def take(self, client: str) -> None:
        """Count one request.

        Raises:
            Problem: 429 with Retry-After, if the bucket is empty.
        """
        with self.lock:
            now = self.clock()
            left, when = self.buckets.pop(client, (float(self.rate.burst), now))
            left = min(left + (now - when) * self.rate.per_second, float(self.rate.burst))
            refused = left < 1.0
            self.buckets[client] = (left if refused else left - 1.0, now)
            if len(self.buckets) > MOST_CLIENTS:
                self.buckets.popitem(last=False)
        if refused:
            seconds = max(1, round((1.0 - left) / self.rate.per_second))
            raise Problem(
                429,
                "too-many",
                "Too many requests",
                f"Too many {self.what} from you in a short time. Wait {seconds} s and go on.",
                headers={"Retry-After": str(seconds)},
            )
