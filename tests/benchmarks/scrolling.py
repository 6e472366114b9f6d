"""Scrolling through a whole catalog in Chromium: whether its memory stays bounded and every photograph comes."""

import re
from typing import TYPE_CHECKING, Any

import psutil

from flows.service.limits import Rate, Rates
from infra.settings import Settings
from tests.benchmarks.progress import say
from tests.benchmarks.table import Row
from tests.browser import chromium
from tests.portraits import jpeg, portrait
from tests.serving import serving

if TYPE_CHECKING:
    from playwright.sync_api import CDPSession, Page

NO_LIMIT = Rates(*[Rate(10**9, 10**9)] * 3)
MARKS = (1_000, 10_000, 50_000)  # photographs after which, beside the end, the page is weighed
# Two screens at a time for some seconds; counts each tile once, and the breaks in their order.
DOWNWARDS = """async (seconds) => {
  const seen = window.seen ??= { count: 0, last: null, breaks: 0 };
  const until = performance.now() + 1000 * seconds;
  while (performance.now() < until) {
    const numbers = [...document.querySelectorAll(".tile > a")].map((link) => +link.pathname.split("/").pop());
    for (const number of numbers) if (seen.last === null || number < seen.last) {
      if (seen.last !== null && number !== seen.last - 1) seen.breaks += 1;
      seen.last = number; seen.count += 1;
    }
    if (!document.querySelector("a.more")) return { ...seen, tiles: numbers.length, over: true };
    scrollBy(0, 2 * innerHeight);
    await new Promise((resolve) => setTimeout(resolve, 25));
  }
  return { ...seen, tiles: document.querySelectorAll(".tile").length, over: false };
}"""


def scroll(settings: Settings) -> dict[str, Any]:
    """Go down the wall to its end, then leap back to its beginning. Every tile gets a picture, which the browser decodes."""
    picture = jpeg(portrait(320), quality=82)
    with serving(settings, rates=NO_LIMIT) as url, chromium() as page:
        page.route(re.compile("/picture"), lambda route: route.fulfill(body=picture, content_type="image/jpeg"))
        session = page.context.new_cdp_session(page)
        session.send("Performance.enable")
        page.goto(f"{url}/photographs")
        page.wait_for_load_state("networkidle")
        weighed, marks, over, most = {"start": weight(page, session)}, list(MARKS), False, 0
        while not over:
            state = page.evaluate(DOWNWARDS, 2)
            over, most = state["over"], max(most, state["tiles"])
            if marks and state["count"] >= marks[0]:
                marks.pop(0)
                so_far = f"{state['count']:,} photographs"
                weighed[so_far] = weight(page, session)
                say(f"{so_far}: {weighed[so_far]}, {state['breaks']} breaks")
        weighed["end"] = weight(page, session)
        page.evaluate("scrollTo(0, 0)")
        page.locator(
            f".tile > a[href^='/photographs/{state['count']}']"
        ).wait_for()  # the newest has the highest number
        weighed["back at the beginning"] = weight(page, session)
    return {"photographs": state["count"], "breaks": state["breaks"], "most_tiles": most, "weighed": weighed}


def weight(page: "Page", session: "CDPSession") -> dict[str, float]:
    """What the page holds: MB of JavaScript's heap after collecting garbage, nodes, MB resident of its process."""
    session.send("HeapProfiler.collectGarbage")
    metrics = {m["name"]: m["value"] for m in session.send("Performance.getMetrics")["metrics"]}
    mine = [p for p in psutil.Process().children(recursive=True) if "--type=renderer" in p.cmdline()]
    return {
        "heap_mb": metrics["JSHeapUsedSize"] / 1e6,
        "nodes": metrics["Nodes"],
        "resident_mb": max((p.memory_info().rss for p in mine), default=0) / 1e6,
    }


def rows(found: dict[str, Any]) -> list[Row]:
    """Lay the figures out for the table."""
    laid = [
        Row(
            f"Chromium's page, {when}",
            f"{kept['resident_mb']:.0f} MB resident, {kept['heap_mb']:.1f} MB of JavaScript",
            f"{kept['nodes']:,.0f} nodes",
        )
        for when, kept in found["weighed"].items()
    ]
    tiles = f"at most {found['most_tiles']} tiles in the page"
    laid.append(Row(f"{found['photographs']:,} photographs came in order", f"{found['breaks']} breaks", tiles))
    return laid
