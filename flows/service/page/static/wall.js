// A wall of any length in the memory of a short one. Whole rows far above are dropped for an empty space of their height,
// so that nothing which stays moves, and are fetched again by their places when somebody comes back to them.
"use strict";
const MOST = 600, KEPT = 300, SCREENS = 2; // tiles from which on some are dropped, how many stay at least, how far out of sight

$$("[data-window]").forEach((wall) => {
  const above = document.createElement("div"), dropped = []; // { after, upto, count, height } from the top on
  wall.before(above);
  document.documentElement.style.overflowAnchor = "none"; // we keep what is in sight in its place ourselves
  let begins = new URL(location.href).searchParams.get("after") ?? ""; // the place before the first tile
  const at = (after) => {
    const address = new URL(location.href);
    if (after) address.searchParams.set("after", after); else address.searchParams.delete("after");
    return address.href;
  };
  const makeRoom = () => { above.style.height = `${dropped.reduce((sum, rows) => sum + rows.height, 0)}px`; };

  function dropAbove() {
    const tiles = wall.children;
    let first = tiles.length - KEPT;
    const beginsRow = (i) => tiles[i].offsetTop > tiles[i - 1].offsetTop;
    const far = (i) => tiles[i].getBoundingClientRect().top < -SCREENS * innerHeight && beginsRow(i);
    while (first > 0 && !far(first)) first -= 1;
    if (first <= 0) return;
    const height = tiles[first].offsetTop - tiles[0].offsetTop;
    const gone = [...tiles].slice(0, first), upto = gone.at(-1).dataset.place;
    dropped.push({ after: begins, upto, count: first, height });
    begins = upto;
    gone.forEach((tile) => tile.remove());
    makeRoom();
  }

  function dropBelow() {
    const tiles = [...wall.children];
    let last = KEPT;
    while (last < tiles.length && tiles[last].getBoundingClientRect().top < (1 + SCREENS) * innerHeight) last += 1;
    if (last < tiles.length) goOnBehind(tiles.splice(last), tiles[last - 1].dataset.place);
  }

  function goOnBehind(gone, place) {
    gone.forEach((tile) => tile.remove());
    const link = document.createElement("a");
    Object.assign(link, { className: "more", rel: "next", href: at(place), textContent: "More photographs" });
    $("a.more")?.remove();
    wall.after(link);
    endless(link);
  }

  async function fetched(rows) {
    const found = [], present = wall.children[0]?.dataset.place;
    for (let address = at(rows.after); address && found.length < rows.count;) {
      const part = await parsed(address);
      for (const tile of $$("[data-items] > *", part)) {
        if (tile.dataset.place === present || found.length >= rows.count) return found;
        found.push(tile);
        if (tile.dataset.place === rows.upto) return found;
      }
      address = $("a.more", part)?.href;
    }
    return found;
  }

  async function back() {
    if (!dropped.length) return;
    const lost = wall.getBoundingClientRect().top > innerHeight; // somebody has jumped: nothing but empty space is in sight
    let rows = dropped.at(-1), bottom = above.getBoundingClientRect().bottom;
    if (lost) {
      for (let i = dropped.length - 1; i > 0 && bottom - dropped[i].height > 0; i -= 1) {
        bottom -= dropped[i].height;
        rows = dropped[i - 1];
      }
    }
    const tiles = await fetched(rows);
    if (lost) goOnBehind([...wall.children], rows.upto);
    const first = wall.children[0], before = first?.getBoundingClientRect().top;
    dropped.splice(dropped.indexOf(rows));
    begins = rows.after;
    keepPlace(tiles[0], at(rows.after));
    wall.prepend(...tiles);
    makeRoom();
    if (first) scrollBy(0, first.getBoundingClientRect().top - before);
    if (wall.children.length > MOST) dropBelow();
  }

  const watch = new IntersectionObserver((entries) => {
    if (!entries.at(-1).isIntersecting || !dropped.length) return; // several may come at once: the last one tells how it is now
    watch.unobserve(above);
    inTurn(back).then(() => watch.observe(above), () => setTimeout(() => watch.observe(above), 2000)); // or try again soon
  }, { rootMargin: "1500px" });
  watch.observe(above);
  wall.addEventListener("grown", () => { if (wall.children.length > MOST) dropAbove(); });
});
