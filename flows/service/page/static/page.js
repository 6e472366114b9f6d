// What the page gains from scripts. Without them every link and form still works.
"use strict";
const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
document.documentElement.classList.add("js");

// Endless scrolling: the link to the next page is followed before it comes into sight, and the address keeps the place.
let working = Promise.resolve();
const inTurn = (work) => (working = working.then(work, work)); // one change of a list at a time
const parsed = async (address) => {
  const answer = await fetch(address, { headers: { "X-Part": "1" } });
  if (!answer.ok) throw new Error(answer.status);
  return new DOMParser().parseFromString(await answer.text(), "text/html");
};
const keepPlace = (item, address) => item && new IntersectionObserver((entries, watch) => {
  if (!item.isConnected) watch.disconnect();
  else if (entries.at(-1).isIntersecting) history.replaceState(null, "", address);
}).observe(item);
function endless(link) {
  const follow = async () => {
    if (!link.isConnected) return;
    try {
      const part = await parsed(link.href), list = $("[data-items]");
      const items = $$("[data-items] > *", part), next = $("a.more", part);
      keepPlace(items[0], link.href);
      list.append(...items);
      if (next) { link.replaceWith(next); endless(next); } else link.remove();
      list.dispatchEvent(new Event("grown"));
    } catch {
      link.textContent = "Could not load more. Try again";
      link.addEventListener("click", (event) => { event.preventDefault(); endless(link); }, { once: true });
    }
  };
  const watch = new IntersectionObserver((entries) => {
    if (!entries.at(-1).isIntersecting) return; // several may come at once: the last one tells how it is now
    watch.disconnect();
    link.textContent = "Loading…";
    inTurn(follow);
  }, { rootMargin: "1500px" });
  watch.observe(link);
}
$$("a.more").forEach((link) => {
  keepPlace($("[data-items] > *"), location.href);
  endless(link);
});

// Filters apply as they are chosen. Keys walk through a list step by step: then with Enter, or once the field is left.
$$("form[data-auto]").forEach((form) => {
  let keys = false, walked = false, field = sessionStorage.getItem("field");
  if (field) form.elements[field]?.focus();
  sessionStorage.removeItem("field");
  form.addEventListener("pointerdown", () => { keys = false; });
  form.addEventListener("keydown", (event) => {
    keys = true;
    if (event.key === "Enter" && walked) form.requestSubmit();
  });
  form.addEventListener("change", (event) => {
    walked = keys && event.target.tagName === "SELECT";
    if (!walked) form.requestSubmit();
  });
  form.addEventListener("focusin", (event) => { field = event.target.name; });
  form.addEventListener("focusout", (event) => {
    field = event.relatedTarget?.name || field;
    if (walked) form.requestSubmit();
  });
  form.addEventListener("submit", () => {
    walked = false;
    if (keys) sessionStorage.setItem("field", field);
  });
  form.addEventListener("formdata", ({ formData }) => {
    for (const [name, value] of [...formData]) if (value === "") formData.delete(name);
  });
});
$$("details.filters").forEach((details) => {
  if (matchMedia("(max-width: 52rem)").matches && !details.dataset.active) details.open = false;
});

// Before and after.
$$(".compare").forEach((box) => {
  const slider = $("input", box);
  const move = () => box.style.setProperty("--at", `${slider.value}%`);
  slider.addEventListener("input", move);
  move();
});

// Parts of a page that take longer come when they are ready.
$$("[data-load]").forEach(async (place) => {
  try {
    place.replaceChildren(...(await parsed(place.dataset.load)).body.childNodes);
  } catch {
    place.textContent = "Could not be loaded. Reload the page to try again.";
  }
});

// Live progress of all that is at work here: runs, jobs, an upgrade. Asked for at once, and only while somebody looks.
const EVERY = 2000; // ms
const live = $$("[data-live]");
if (live.length) {
  const late = document.createElement("p");
  Object.assign(late, {
    className: "warn",
    hidden: true,
    role: "status",
    textContent: "Progress is not live: the service does not answer. It is asked again every few seconds.",
  });
  live[0].before(late);
  const show = (place, state) => {
    if (state.total === null) return;
    $("progress", place).max = Math.max(state.total, 1);
    $("progress", place).value = state.done;
    const [done, total] = [state.done, state.total].map((count) => count.toLocaleString("en"));
    $("[data-count]", place).textContent = `${done} of ${total} ${place.dataset.what ?? "photographs"}`;
    const left = $("[data-left]", place);
    if (left) left.textContent = state.seconds_left ? `, about ${Math.ceil(state.seconds_left / 60)} min of work left` : "";
  };
  const look = async () => {
    if (document.hidden) return;
    try {
      const answer = await fetch(`/live?${live.map((place) => place.dataset.live).join("&")}`);
      if (!answer.ok) throw new Error(answer.status);
      const states = await answer.json();
      live.forEach((place) => show(place, states[place.dataset.live]));
      late.hidden = true;
      if (Object.values(states).some((state) => state.over)) location.reload();
    } catch {
      late.hidden = false;
    }
  };
  const again = () => setTimeout(() => look().then(again), EVERY);
  again();
}

// Search: drop, paste or choose.
$$("form[data-drop]").forEach((form) => {
  const field = $("input[type=file]", form), zone = $(".drop", form), said = $("[data-said]", form);
  const wrong = (files) => {
    const most = form.dataset.megabytes, size = files[0].size / 2 ** 20;
    if (files.length > 1) return `Those were ${files.length} files. Drop one photograph at a time.`;
    if (size <= most) return "";
    return `${files[0].name} has ${Math.ceil(size)} MB; at most ${most} MB are taken. Choose a smaller picture.`;
  };
  const send = (files) => {
    if (!files.length) return;
    const why = wrong(files);
    said.textContent = why;
    said.hidden = !why;
    if (why) { field.value = ""; return; }
    field.files = files;
    $("[data-wait]", form).hidden = false;
    form.requestSubmit();
  };
  field.addEventListener("change", () => send(field.files));
  for (const kind of ["dragover", "dragleave", "drop"]) {
    zone.addEventListener(kind, (event) => { event.preventDefault(); zone.classList.toggle("over", kind === "dragover"); });
  }
  zone.addEventListener("drop", (event) => send(event.dataTransfer.files));
  addEventListener("paste", (event) => send(event.clipboardData.files));
});

// Matches of one face of the probe at a time.
$$("[data-choices]").forEach((choices) => {
  const choose = (id) => {
    $$("[data-answer]").forEach((answer) => { answer.hidden = answer.id !== id; });
    $$("a", choices).forEach((link) => link.classList.toggle("here", link.getAttribute("href") === `#${id}`));
  };
  choices.addEventListener("click", (event) => {
    const link = event.target.closest("a[href^='#']");
    if (link) { event.preventDefault(); choose(link.getAttribute("href").slice(1)); }
  });
  const first = $("[data-answer]");
  if (first) choose(first.id);
});

// A question before what cannot be taken back; how many are chosen; outlines on and off.
$$("form[data-ask]").forEach((form) => {
  form.addEventListener("submit", (event) => { if (!confirm(form.dataset.ask)) event.preventDefault(); });
});
$$("form[data-choose]").forEach((form) => {
  const count = () => {
    const chosen = $$("input[name=face]:checked", form).length;
    $("[data-chosen]", form).textContent = chosen ? `${chosen} chosen` : "Choose faces";
    $$("button[data-needs]", form).forEach((button) => { button.disabled = !chosen; });
  };
  form.addEventListener("change", count);
  count();
});
const outlines = $("[data-outlines]");
const outline = (on) => {
  document.body.classList.toggle("plain", !on);
  outlines.setAttribute("aria-pressed", on);
  localStorage.setItem("outlines", on ? "1" : "0");
};
if (outlines) {
  outlines.hidden = false;
  outline(localStorage.getItem("outlines") !== "0");
  outlines.addEventListener("click", () => outline(document.body.classList.contains("plain")));
}

// What was sent is not sent again: a second answer to the same page would be about pictures that nobody has seen.
let sent = false;
addEventListener("submit", (event) => {
  if (event.defaultPrevented || event.target.method !== "post") return;
  if (sent) event.preventDefault();
  sent = true;
});
addEventListener("pageshow", () => { sent = false; });

// Keyboard: arrows walk over pictures, [ and ] over pages, / to the search field, o for outlines, ? for help.
const GLANCE = 300; // ms: nobody has looked at pictures that came later
let shown = Infinity; // when all pictures of the page were there
addEventListener("load", (event) => { shown = event.timeStamp; });
addEventListener("keydown", (event) => {
  const elsewhere = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) || $("dialog[open]");
  if (event.ctrlKey || event.metaKey || event.altKey || elsewhere) return;
  const press = (selector) => {
    const found = $(selector);
    if (found) { event.preventDefault(); found.click(); }
  };
  if (event.key.startsWith("Arrow") && $("[data-items]")) walk(event); // the only one that may be held down
  else if (event.repeat) return;
  else if (event.key === "/") seek(event);
  else if (event.key === "o" && outlines) outlines.click();
  else if (event.key === "?") $("#keys").showModal();
  else if (event.key === "[" || event.key === "ArrowLeft") press("a[rel=prev]");
  else if (event.key === "]" || event.key === "ArrowRight") press("a[rel=next]:not(.more)");
  else if ((event.key === "y" || event.key === "n") && event.timeStamp > shown + GLANCE) {
    press(`.proposal button[data-key=${event.key}]`);
  }
});
function seek(event) {
  const field = $("input[type=search]");
  if (!field) return;
  event.preventDefault();
  field.closest("details")?.setAttribute("open", "");
  field.focus();
}
function walk(event) {
  const links = $$("[data-items] > * > a:first-of-type");
  if (!links.length) return;
  const at = links.indexOf(document.activeElement);
  let to = 0;
  if (at >= 0) {
    const here = links[at].getBoundingClientRect(), middle = here.left + here.width / 2;
    if (event.key === "ArrowRight") to = at + 1;
    else if (event.key === "ArrowLeft") to = at - 1;
    else {
      const down = event.key === "ArrowDown";
      const beyond = (r) => (down ? r.top > here.top + 5 : r.top < here.top - 5);
      const aside = (r) => Math.abs(r.left + r.width / 2 - middle);
      const rows = links.map((link, i) => [i, link.getBoundingClientRect()]).filter(([, r]) => beyond(r));
      const row = down ? Math.min(...rows.map(([, r]) => r.top)) : Math.max(...rows.map(([, r]) => r.top));
      const best = rows.filter(([, r]) => Math.abs(r.top - row) < 5).sort(([, a], [, b]) => aside(a) - aside(b))[0];
      to = best ? best[0] : at;
    }
  }
  const link = links[Math.min(Math.max(to, 0), links.length - 1)];
  event.preventDefault();
  link.focus();
  link.scrollIntoView({ block: "nearest" });
}
$$("[data-close]").forEach((button) => button.addEventListener("click", () => button.closest("dialog").close()));
