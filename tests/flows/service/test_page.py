"""The page in a real browser, over a catalog that the real pipeline made from real photographs."""

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import func, select, update

from flows.service.limits import Rate, Rates
from infra.catalog.database import Catalog
from infra.catalog.service import tokens
from infra.catalog.service.tokens import Role
from infra.catalog.tables.people import Decision
from infra.catalog.tables.schema import (
    Collection,
    Content,
    Embedding,
    Face,
    FaceIdentity,
    Failure,
    Identity,
    Image,
    MergeProposal,
    ModelVersion,
    Restoration,
    Run,
    RunStatus,
    now,
)
from infra.catalog.work.runs import close_run, open_run
from infra.settings import Settings
from tasks.identities import decisions
from tasks.nights import schedules
from tests import crowd
from tests.browser import barriers, complaints
from tests.portraits import jpeg, landscape, pair
from tests.serving import serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

pytestmark = pytest.mark.slow
GENEROUS = Rates(*[Rate(100_000, 100_000)] * 3)
DESKTOP, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
TELLS_LATE = """
  const held = [];
  let late = true;
  window.IntersectionObserver = class extends IntersectionObserver {
    constructor(tell, options) {
      const kept = [];
      super((entries, self) => late ? kept.push(...entries) : tell(entries, self), options);
      held.push(() => kept.length && tell(kept, this));
    }
  };
  window.tellNow = () => { late = false; held.forEach((tell) => tell()); };
"""  # what comes into sight and goes out of it is told all at once, on request
PAGES = (
    "/photographs", "/photographs?faces=without", "/photographs?text=nothing", "/photographs/1", "/faces/1",
    "/people", "/people?min_faces=1", "/people/1", "/people/proposals", "/search", "/nights", "/nights/1",
    "/models", "/models/dlib-resnet", "/erase", "/erase?face=1", "/erase?identity=1",
    "/photographs?question=quality+%3E+0.2+and+person+is+known", "/photographs?question=quality+%3E", "/nowhere",
)  # fmt: skip


@pytest.fixture(scope="module")
def address(own: Settings) -> Iterator[str]:
    with serving(own, rates=GENEROUS) as url:
        yield url


@pytest.fixture
def page(browser: "Browser", address: str) -> "Iterator[Page]":
    context = browser.new_context(base_url=address, viewport=DESKTOP)
    yield context.new_page()
    context.close()


@pytest.fixture
def undecided(tmp_path: Path) -> Iterator[tuple[str, Catalog]]:
    """A service whose catalog proposes four merges of made-up people, and that catalog."""
    settings = Settings(home=tmp_path)
    catalog = Catalog(settings.catalog_url)
    crowd.enter(catalog, crowd.vectors(8, 16), indexed=False)
    with catalog.write() as session:
        session.add_all(Identity(id=n, model_version_id=crowd.EMBEDDER) for n in range(1, 9))
        session.flush()
        place = {"model_version_id": crowd.EMBEDDER, "exemplar": True, "run_id": 1}
        session.add_all(FaceIdentity(face_id=n, identity_id=n, **place) for n in range(1, 9))
        session.add_all(
            MergeProposal(identity_a_id=n, identity_b_id=n + 1, face_a_id=n, face_b_id=n + 1, similarity=0.9, run_id=1)
            for n in (1, 3, 5, 7)
        )
    with serving(settings, rates=GENEROUS) as url:
        yield url, catalog
    catalog.close()


OF_LOOKS = ("color-contrast",)  # of axe's rules


@pytest.mark.parametrize(("viewport", "scheme"), [(DESKTOP, "light"), (PHONE, "dark")], ids=["desktop", "phone"])
def test_every_page_keeps_its_own_policy_and_lets_everybody_in(
    browser: "Browser", address: str, viewport: dict[str, int], scheme: str
) -> None:
    context = browser.new_context(base_url=address, viewport=viewport, color_scheme=scheme)
    page = context.new_page()
    said, found, too_wide = complaints(page), [], []
    for path in PAGES:
        page.goto(path)
        if path.startswith("/faces"):
            page.locator("[data-load] .face").first.wait_for()
        found += barriers(page, () if scheme == "light" else OF_LOOKS)  # the structure is the same
        if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
            too_wide.append(path)
    context.close()
    assert found == []
    assert too_wide == []
    assert [text for text in said if "404" not in text and "422" not in text] == []  # /nowhere, and half a question


def test_faces_are_outlined_where_they_are(page: "Page") -> None:
    page.goto("/photographs?text=pair")
    picture = page.locator(".tile img").bounding_box()
    left, right = (outline.bounding_box() for outline in page.locator(".tile rect").all())
    assert picture is not None
    assert left is not None
    assert right is not None
    middle = picture["x"] + picture["width"] / 2
    assert picture["x"] < left["x"] < left["x"] + left["width"] < middle < right["x"]
    assert right["x"] + right["width"] < picture["x"] + picture["width"]
    page.get_by_role("button", name="Outlines").click()
    assert not page.locator("svg.boxes").is_visible()
    page.reload()
    assert not page.locator("svg.boxes").is_visible()  # as it was left
    page.keyboard.press("o")
    assert page.locator("svg.boxes").is_visible()


def test_filters_stand_in_the_address_and_can_be_taken_off(page: "Page") -> None:
    page.goto("/photographs")
    assert page.locator(".tile").count() == 4
    page.locator("select[name=faces]").select_option("without")
    page.wait_for_url("**/photographs?faces=without")
    assert page.locator(".tile").count() == 1
    page.get_by_role("link", name="without faces").click()
    page.wait_for_url("**/photographs")
    assert page.locator(".tile").count() == 4
    page.go_back()
    assert page.locator(".tile").count() == 1


def test_a_question_filters_the_wall_and_one_that_cannot_be_read_says_why_under_its_field(page: "Page") -> None:
    page.goto("/photographs")
    field = page.get_by_label("Question about a face")
    field.fill("photo ~ pair")
    field.press("Enter")
    page.wait_for_url("**/photographs?question=*")
    assert page.locator(".tile").count() == 1
    page.locator(".tile > a").click()
    page.get_by_role("link", name="To the wall").click()
    assert field.input_value() == "photo ~ pair"
    field.fill("photo ~ pair and")
    field.press("Enter")
    problem = page.get_by_role("alert")
    problem.wait_for()
    assert "cannot be read from >>> on" in problem.inner_text()
    assert field.get_attribute("aria-invalid") == "true"
    under, beside = field.bounding_box(), problem.bounding_box()
    assert under is not None
    assert beside is not None
    assert under["y"] + under["height"] <= beside["y"] < under["y"] + under["height"] + 40
    assert page.locator(".tile").count() == 0
    assert field.input_value() == "photo ~ pair and"  # to be mended, not typed again


def test_the_keyboard_walks_the_wall_and_from_photograph_to_photograph(page: "Page") -> None:
    page.goto("/photographs")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    focused = page.evaluate("document.activeElement.getAttribute('href')")
    assert focused == page.locator(".tile > a").nth(1).get_attribute("href")
    page.keyboard.press("Enter")
    page.wait_for_url(f"**{focused}")
    page.keyboard.press("ArrowRight")
    page.wait_for_url(lambda url: not url.endswith(focused))
    page.keyboard.press("[")
    page.wait_for_url(f"**{focused}")


def test_a_restored_face_is_compared_and_marked(page: "Page", own: Settings) -> None:
    with Catalog(own.catalog_url).read() as session:
        face = session.scalar(select(Restoration.face_id))
    page.goto(f"/faces/{face}")
    assert page.get_by_text(re.compile("^synthetic detail")).first.is_visible()
    slider = page.get_by_role("slider")
    before = page.locator(".after").evaluate("e => getComputedStyle(e).clipPath")
    slider.focus()
    for _ in range(10):
        page.keyboard.press("ArrowLeft")
    after = page.locator(".after").evaluate("e => getComputedStyle(e).clipPath")
    assert before != after
    assert page.get_by_text("similarity", exact=False).first.is_visible()
    page.locator(".faces .face").first.wait_for()  # the neighbours have come
    assert page.get_by_text(re.compile("the same person")).first.is_visible()


def test_a_face_that_was_recognised_by_invented_pixels_says_so(page: "Page", own: Settings) -> None:
    with Catalog(own.catalog_url).write() as session:
        restoration = session.scalars(select(Restoration)).first()
        assert restoration is not None
        face, restorer = restoration.face_id, restoration.model_version_id
        model = session.get_one(ModelVersion, restorer)
        of_face = update(Embedding).where(Embedding.face_id == face)
    page.goto(f"/faces/{face}")
    assert page.get_by_text("not used to recognise anybody").is_visible()
    with Catalog(own.catalog_url).write() as session:
        session.execute(of_face.values(restorer_id=restorer))
    page.reload()
    assert page.get_by_text("Its embedding was made from these invented pixels").is_visible()
    assert page.get_by_text("not used to recognise").count() == 0
    told = page.request.get(f"/api/v1/faces/{face}").json()
    assert told["embedding_restorer"] == f"{model.name}@{model.version}"
    with Catalog(own.catalog_url).write() as session:
        session.execute(of_face.values(restorer_id=None))


def test_a_face_without_an_embedding_says_why_and_what_cannot_be_loaded_is_said_in_its_place(
    page: "Page", own: Settings
) -> None:
    with Catalog(own.catalog_url).write() as session:
        face = session.scalars(select(Face).order_by(Face.id.desc())).first()
        assert face is not None
        vector = session.scalars(select(Embedding).where(Embedding.face_id == face.id)).one()
        kept = {"face_id": face.id, "model_version_id": vector.model_version_id, "vector": vector.vector}
        session.delete(vector)
    place = page.locator("[data-load]")
    page.goto(f"/faces/{face.id}")
    place.get_by_text("The next night of its collection makes one").wait_for()
    with Catalog(own.catalog_url).write() as session:
        session.execute(update(Face).where(Face.id == face.id).values(embeddings_expired_at=now()))
    page.reload()
    place.get_by_text("the time was over for which its collection keeps embeddings").wait_for()
    assert barriers(page) == []
    page.route("**/neighbours", lambda route: route.continue_(url=route.request.url.replace(f"/{face.id}/", "/99999/")))
    page.reload()
    place.get_by_text("Could not be loaded").wait_for()
    assert page.locator("h1").count() == page.locator("header").count() == 1
    with Catalog(own.catalog_url).write() as session:
        session.execute(update(Face).where(Face.id == face.id).values(embeddings_expired_at=None))
        session.add(Embedding(**kept))


def test_a_dropped_photograph_finds_people_face_by_face(page: "Page") -> None:
    page.goto("/search")
    page.locator("input[type=file]").set_input_files(
        {"name": "two.jpg", "mimeType": "image/jpeg", "buffer": jpeg(pair(420))}
    )
    page.get_by_role("heading", name="2 faces in your photograph: choose one").wait_for()
    shown = page.locator("[data-answer]:visible")
    assert shown.count() == 1
    assert shown.locator(".face").count() == 4
    assert "the same person" in shown.inner_text()
    first = shown.get_attribute("id")
    page.locator("svg.boxes a").nth(1).click()
    assert page.locator("[data-answer]:visible").get_attribute("id") != first
    page.locator("input[type=file]").set_input_files(
        {"name": "coffee.jpg", "mimeType": "image/jpeg", "buffer": jpeg(landscape())}
    )
    page.get_by_role("alert").wait_for()
    assert "no face was found" in page.get_by_role("alert").inner_text()


def test_what_cannot_be_sent_is_said_before_it_is(page: "Page") -> None:
    page.goto("/search")
    page.evaluate("""() => {
      const dataTransfer = new DataTransfer();
      for (const name of ["a.jpg", "b.jpg"]) dataTransfer.items.add(new File(["x"], name, { type: "image/jpeg" }));
      $(".drop").dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
    }""")
    page.get_by_text("Those were 2 files. Drop one photograph at a time.").wait_for()
    form = page.locator("form[data-drop]")
    assert form.get_attribute("data-megabytes") == "32"
    form.evaluate("(form) => { form.dataset.megabytes = 1; }")  # so many bytes take long to reach the browser
    page.locator("input[type=file]").set_input_files(
        {"name": "big.jpg", "mimeType": "image/jpeg", "buffer": bytes(2 * 2**20)}
    )
    page.get_by_text("big.jpg has 2 MB; at most 1 MB are taken.").wait_for()
    assert barriers(page) == []
    page.locator("input[type=file]").set_input_files(
        {"name": "coffee.jpg", "mimeType": "image/jpeg", "buffer": jpeg(landscape())}
    )
    page.get_by_text("no face was found").wait_for()


def test_a_problem_leaves_a_way_on(page: "Page", address: str) -> None:
    page.goto("/people/1")
    page.get_by_label("Name or number").fill("nobody")
    page.get_by_role("button", name="Merge into this one").click()
    page.get_by_role("heading", name="Who is meant?").wait_for()
    page.reload()
    assert page.get_by_role("navigation").is_visible()
    assert page.get_by_text("this machine").is_visible()
    assert page.get_by_role("link", name="Try again").count() == 0
    page.get_by_role("link", name="Go back").click()
    page.wait_for_url("**/people/1")
    page.goto("/people/1/merge")  # where a form's answer was
    page.wait_for_url("**/people")
    for path, section in (
        ("/people/99999", "/people"),
        ("/faces/99999", "/photographs"),
        ("/nowhere", "/photographs"),
        ("/nights?after=x", "/nights"),
    ):
        page.goto("about:blank")
        assert page.goto(path).status in (404, 422)  # type: ignore[union-attr]
        assert page.get_by_role("navigation").is_visible()
        assert page.get_by_role("link", name="Go back").get_attribute("href") == section
        assert barriers(page) == []
    page.goto("/nowhere")
    assert "/nowhere is no address of this service." in page.locator("main").inner_text()
    for elsewhere in ("http://elsewhere.org/people/1", f"{address}//elsewhere.org/people/1"):
        answer = page.request.get("/people/99999", headers={"Referer": elsewhere})
        assert 'href="/people">Go back' in answer.text()


def test_a_person_is_named_and_the_name_taken_back(page: "Page") -> None:
    page.goto("/people?min_faces=1")
    page.locator(".faces a").first.click()
    page.wait_for_url("**/people/*")
    title = page.locator("h1").inner_text()
    page.get_by_label("Name", exact=True).fill("Eileen Collins")
    page.get_by_role("button", name="Give this name").click()
    page.wait_for_url("**decided=*")
    assert page.locator("h1").inner_text() == "Eileen Collins"
    with page.expect_navigation():
        page.locator(".note").get_by_role("button", name="Undo").click()
    assert page.locator("h1").inner_text() == title


def test_chosen_faces_become_somebody_else_and_return(page: "Page") -> None:
    page.goto("/people?min_faces=2")
    page.locator(".faces a").first.click()
    page.wait_for_url("**/people/*")
    faces = page.locator("input[name=face]").count()
    assert page.get_by_role("button", name="Somebody else, together").is_disabled()
    page.locator("input[name=face]").first.check()
    page.get_by_role("button", name="Somebody else, together").click()
    page.wait_for_url("**decided=*")
    assert page.locator("input[name=face]").count() == faces - 1
    with page.expect_navigation():
        page.locator(".note").get_by_role("button", name="Undo").click()
    page.goto("/people?min_faces=2")
    page.locator(".faces a").first.click()
    page.wait_for_url("**/people/*")
    assert page.locator("input[name=face]").count() == faces


def test_what_failed_is_shown_by_name_and_reason_and_a_collection_by_its_own_numbers(
    browser: "Browser", undecided: tuple[str, Catalog]
) -> None:
    url, catalog = undecided
    there = {"etag": "", "size": 1, "modified_at": now()}
    with catalog.write() as session:
        run = open_run(session, 1, "recipe")
        for n, reason in ((21, "truncated"), (22, "not_an_image")):
            session.add(Image(id=n, collection_id=1, key=f"{n}.jpg", status="failed", **there))
            session.flush()
            failed = {"run_id": run.id, "collection_id": 1, "image_id": n, "key": f"{n}.jpg", "stage": "decode"}
            session.add(Failure(**failed, reason=reason, message="It ends early.", retryable=False))
        session.add_all(Image(collection_id=2, key=f"{n}.jpg", status="pending", **there) for n in (1, 2))
        close_run(session, run.id, RunStatus.DONE_WITH_FAILURES, {}, None)
    for viewport in (DESKTOP, PHONE):
        page = browser.new_page(base_url=url, viewport=viewport)
        page.goto("/photographs")
        assert "8 photographs in 2 collections · 2 could not be read · 2 waiting" in page.locator(".head").inner_text()
        page.get_by_role("link", name="2 could not be read").click()
        captions = page.locator(".tile figcaption")
        assert captions.all_inner_texts() == ["decode: not an image\n22.jpg", "decode: truncated\n21.jpg"]
        assert captions.evaluate_all("all => all.map(one => getComputedStyle(one).opacity)") == ["1", "1"]
        assert barriers(page) == []
        page.goto("/nights")
        page.get_by_role("link", name="truncated").click()
        assert captions.all_inner_texts() == ["decode: truncated\n21.jpg"]
        page.locator(".tile > a").click()
        assert "This photograph could not be read. It ends early." in page.locator("main").inner_text()
        page.goto("/photographs?collection=large")
        assert "8 photographs · 2 could not be read" in page.locator(".head").inner_text()
        page.goto("/photographs?collection=small")
        assert "0 photographs · 2 waiting" in page.locator(".head").inner_text()
        assert "2 photographs wait for the next night" in page.locator(".empty").inner_text()
        assert page.locator("pre").inner_text() == "visage run small"
        page.goto("/photographs?collection=small&status=pending")
        page.locator(".tile > a").first.click()
        assert "This photograph waits for the next night." in page.locator("main").inner_text()
        page.close()


def test_a_key_answers_only_the_proposal_whose_pictures_were_seen(
    browser: "Browser", undecided: tuple[str, Catalog]
) -> None:
    url, catalog = undecided

    def answers() -> int:
        with catalog.read() as session:
            return session.scalar(select(func.count()).select_from(Decision)) or 0

    page = browser.new_page(base_url=url)
    page.goto("/people/proposals")
    page.wait_for_timeout(500)
    page.keyboard.press("?")
    page.keyboard.press("n")  # behind the help
    page.keyboard.press("Escape")
    assert answers() == 0
    page.keyboard.down("n")
    for _ in range(30):
        page.keyboard.down("n")  # held: it repeats itself
        page.wait_for_timeout(30)
    page.keyboard.up("n")
    assert answers() == 1
    assert page.locator(".proposal").count() == 3
    page.evaluate("$$('.proposal button').slice(0, 4).forEach((button) => button.click())")
    page.wait_for_url("**decided=2")
    assert answers() == 2
    page.route("**/crop", lambda route: None)  # pictures that do not come
    page.goto("/people/proposals", wait_until="commit")
    page.locator("button[data-key=n]").wait_for()
    page.wait_for_timeout(500)
    page.keyboard.press("n")
    page.wait_for_timeout(300)
    assert answers() == 2
    page.close()


def test_a_person_named_with_a_number_is_not_taken_for_the_one_of_that_number(
    browser: "Browser", undecided: tuple[str, Catalog]
) -> None:
    url, catalog = undecided

    def merge(other: str) -> str:
        page.goto("/people/1")
        page.get_by_label("Name or number").fill(other)
        page.get_by_role("button", name="Merge into this one").click()
        page.wait_for_load_state()
        return page.locator("main").inner_text()

    page = browser.new_page(base_url=url)
    for number, name in ((5, "3"), (6, "Ada"), (7, "Ada"), (8, "1923")):
        with catalog.write() as session:
            decisions.name(session, "curator", number, name)
    assert "'3' may be Person (number 3), 3 (number 5)." in merge("3")
    assert "'Ada' may be Ada (number 6), Ada (number 7)." in merge("Ada")
    for nobody in ("²", "Adam", "99"):
        assert f"{nobody!r} is nobody's name or number here" in merge(nobody)
    page.goto("/people/1")
    offered = page.locator("datalist option").evaluate_all("options => options.map(option => option.value)")
    assert sorted(offered) == ["1923 (number 8)", "3 (number 5)", "Ada (number 6)", "Ada (number 7)"]
    for text in ("3 (number 5)", "1923", "Person 2", "4", "number 3"):
        assert "Done: merged" in merge(text)
    with catalog.read() as session:
        left = set(session.scalars(select(FaceIdentity.identity_id)))
    assert left == {1, 6, 7}
    page.goto("/people/1")
    page.locator("input[name=face]").first.evaluate("field => { field.value = '²'; field.checked = true }")
    page.locator("button[value=confirm]").evaluate("button => { button.disabled = false; button.click() }")
    page.get_by_text("face must be numbers").wait_for()
    page.close()


def test_a_name_without_spaces_widens_no_page_and_times_name_their_zone(
    browser: "Browser", undecided: tuple[str, Catalog]
) -> None:
    url, catalog = undecided
    long = "Donaudampfschifffahrtsgesellschaftskapitän" * 4
    schedules.add_schedule(catalog, "nightly", "large", "0 2 * * *", "Europe/Berlin")
    page = browser.new_page(base_url=url, viewport=PHONE)
    for name in ("Ada Lovelace", long):
        with catalog.write() as session:
            decisions.name(session, "local", 1, name)
        for path in (
            "/people/1?decided=1",
            "/people?min_faces=1",
            "/people/proposals",
            "/faces/1",
            "/erase?identity=1",
        ):
            page.goto(path)
            assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, path
        page.goto("/people/1")
        undo = page.get_by_role("button", name="Undo").last
        box, line = undo.bounding_box(), 24
        assert box is not None
        assert box["x"] + box["width"] <= PHONE["width"]
        assert box["height"] < 2 * line
        bar = page.locator(".sticky")
        heights = [bar.bounding_box()["height"]]  # type: ignore[index]
        page.locator("input[name=face]").first.check()
        heights.append(bar.bounding_box()["height"])  # type: ignore[index]
        assert heights[0] < 2.5 * line
        assert heights[1] < 5 * line  # two rows of buttons
        assert barriers(page) == []
    assert "UTC" in page.locator("table").inner_text()
    page.goto("/nights")
    assert re.search(r"02:00\s+Europe/Berlin", page.get_by_role("row", name="nightly").inner_text())
    page.close()


def test_two_curators_at_once_do_not_undo_each_other(browser: "Browser", address: str) -> None:
    def desk() -> "tuple[BrowserContext, Page]":
        context = browser.new_context(base_url=address, viewport=DESKTOP)
        return context, context.new_page()

    (one, first), (other, second) = desk(), desk()
    for page, name in ((first, "Ada"), (second, "Grace")):
        page.goto("/people/1")
        page.get_by_label("Name", exact=True).fill(name)
    for page in (first, second):
        page.locator("form[action$='/name'] button").click()
        page.wait_for_url("**decided=*")
    first.reload()
    assert first.locator("h1").inner_text() == "Grace"
    first.goto("/people/1")
    first.locator("tr", has_text="Ada").get_by_role("button", name="Undo").click()
    first.wait_for_load_state()
    assert "cannot be undone before" in first.locator("main").inner_text()
    second.goto("/people/1")
    second.locator("tr", has_text="Grace").get_by_role("button", name="Undo").click()
    second.wait_for_load_state()
    assert second.locator("h1").inner_text() == "Ada"
    second.locator("tr", has_text="Ada").get_by_role("button", name="Undo").click()
    one.close()
    other.close()


def test_a_run_is_watched_while_it_works(page: "Page", own: Settings) -> None:
    catalog = Catalog(own.catalog_url)
    with catalog.write() as session:
        collection = session.scalars(select(Collection)).first()
        assert collection is not None
        run = open_run(session, collection.id, "recipe")
        waiting = [
            Image(collection_id=collection.id, key=f"new{n}.jpg", etag="", size=1, modified_at=now(), status="pending")
            for n in range(4)
        ]
        session.add_all(waiting)
    page.goto("/nights")
    count = page.locator("[data-count]")
    count.get_by_text("0 of 4 photographs").wait_for()
    with catalog.write() as session:
        for image in session.scalars(select(Image).where(Image.key.in_(["new0.jpg", "new1.jpg"]))):
            image.status, image.run_id = "failed", run.id
    count.get_by_text("2 of 4 photographs").wait_for()
    with catalog.write() as session:
        close_run(session, run.id, RunStatus.FAILED, {}, "stopped by a test")
        for image in session.scalars(select(Image).where(Image.key.startswith("new"))):
            session.delete(image)
    count.wait_for(state="detached")
    with page.expect_navigation():
        page.get_by_role("link", name=str(run.id), exact=True).click()
    assert "stopped by a test" in page.locator("main").inner_text()


def test_many_runs_are_watched_without_holding_the_browsers_connections(
    browser: "Browser", undecided: tuple[str, Catalog]
) -> None:
    url, catalog = undecided
    with catalog.write() as session:
        first = open_run(session, 1, "recipe")
        told = {"host": first.host, "process_id": first.process_id, "process_started": first.process_started}
        session.add_all(Run(collection_id=1, recipe="", status="running", counts={}, **told) for _ in range(6))
        found = {"etag": "", "size": 1, "modified_at": now()}
        session.add_all(Image(collection_id=1, key=f"new{n}.jpg", status="pending", **found) for n in range(3))
    context = browser.new_context(base_url=url)
    page, other = context.new_page(), context.new_page()
    page.goto("/nights")
    assert page.locator("[data-live]").count() == 7
    count = page.locator("[data-count]").first
    assert count.inner_text() == "0 of 3 photographs"
    other.goto("/photographs", timeout=10_000)
    other.close()
    page.route("**/live?*", lambda route: route.fulfill(status=503, body="busy"))
    page.get_by_text("Progress is not live").wait_for()
    assert barriers(page) == []
    with catalog.write() as session:
        session.execute(update(Image).where(Image.key == "new0.jpg").values(status="failed", run_id=first.id))
    page.unroute("**/live?*")
    page.get_by_text("1 of 3 photographs").wait_for()
    assert not page.get_by_text("Progress is not live").is_visible()
    page.evaluate("Object.defineProperty(document, 'hidden', { get: () => true })")
    page.wait_for_load_state("networkidle")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.wait_for_timeout(2500)
    assert asked == []
    context.close()


def test_scrolling_shows_every_photograph_once_while_others_arrive(
    browser: "Browser", tmp_path_factory: pytest.TempPathFactory
) -> None:
    settings = Settings(home=tmp_path_factory.mktemp("scroll"))
    catalog = Catalog(settings.catalog_url)
    add_photographs(catalog, range(1, 301))
    with serving(settings, rates=GENEROUS) as url:
        context = browser.new_context(base_url=url, viewport=DESKTOP)
        page = context.new_page()
        refuse_pictures(page)
        page.goto("/photographs")
        add_photographs(catalog, range(301, 311))
        for _ in range(100):
            page.mouse.wheel(0, 3000)
            if page.locator("a.more").count() == 0:
                break
            page.wait_for_timeout(50)
        shown = page.locator(
            ".tile figcaption"
        ).all_text_contents()  # also of tiles out of sight, which are not laid out
        assert len(shown) == len(set(shown)) == 300
        assert "after=" in page.url  # where a reload begins
        context.close()


def test_a_long_wall_stays_small_and_leads_back_to_where_it_began(
    browser: "Browser", tmp_path_factory: pytest.TempPathFactory
) -> None:
    settings, total = Settings(home=tmp_path_factory.mktemp("long")), 900
    add_photographs(Catalog(settings.catalog_url), range(1, total + 1))
    with serving(settings, rates=GENEROUS) as url:
        page = browser.new_page(base_url=url, viewport=DESKTOP)
        refuse_pictures(page)
        page.goto("/photographs?order=oldest")
        names = "$$('.tile figcaption').map(e => e.textContent)"
        seen: dict[str, None] = {}

        def present() -> list[str]:
            shown: list[str] = page.evaluate(names)
            numbers = [int(name.removesuffix(".jpg")) for name in shown]
            # Nothing is left out and nothing is there twice, whatever was dropped.
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
            assert len(shown) <= 720
            return shown

        while page.locator("a.more").count():
            seen.update(dict.fromkeys(present()))
            page.mouse.wheel(0, 2500)
            page.wait_for_timeout(60)
        seen.update(dict.fromkeys(present()))
        assert len(seen) == total
        assert "0001.jpg" not in present()
        middle = page.evaluate("document.elementFromPoint(300, 300).closest('.tile').textContent.trim()")
        page.mouse.wheel(0, -4000)
        page.wait_for_timeout(300)
        page.mouse.wheel(0, 4000)
        page.wait_for_timeout(300)
        assert page.evaluate("document.elementFromPoint(300, 300).closest('.tile').textContent.trim()") == middle
        while "0001.jpg" not in present():  # back by the wheel, row by row
            page.mouse.wheel(0, -2500)
            page.wait_for_timeout(60)
        assert page.evaluate("$('.wall').previousElementSibling.offsetHeight") == 0
        while page.locator("a.more").count():
            page.mouse.wheel(0, 2500)
            page.wait_for_timeout(60)
        page.evaluate("scrollTo(0, 0)")  # and back in one leap
        page.get_by_text("0001.jpg").wait_for(state="attached")
        present()
        assert page.locator(".tile").first.bounding_box()["y"] > 0  # type: ignore[index]
        page.close()


def test_a_busy_browser_that_tells_late_of_scrolling_still_loads_more(
    browser: "Browser", tmp_path_factory: pytest.TempPathFactory
) -> None:
    settings = Settings(home=tmp_path_factory.mktemp("busy"))
    add_photographs(Catalog(settings.catalog_url), range(1, 131))
    with serving(settings, rates=GENEROUS) as url:
        page = browser.new_page(base_url=url, viewport=DESKTOP)
        page.add_init_script(TELLS_LATE)
        page.goto("/photographs")
        first = page.locator(".tile").count()
        for step in ("scrollTo(0, 0)", "scrollTo(0, 1e9)"):  # the way on is out of sight, then in sight
            page.evaluate(
                f"async () => {{ {step}; for (let i = 0; i < 3; i++) await new Promise(requestAnimationFrame) }}"
            )
        assert page.locator(".tile").count() == first
        page.evaluate("tellNow()")
        page.locator(".tile").nth(first).wait_for(state="attached")
        page.close()


def test_a_list_begins_where_somebody_has_gone_back_to_when_it_is_loaded_anew(
    browser: "Browser", tmp_path_factory: pytest.TempPathFactory
) -> None:
    settings = Settings(home=tmp_path_factory.mktemp("nights"))
    catalog = Catalog(settings.catalog_url)
    with catalog.write() as session:
        collection = Collection(name="c", uri="/c", include=[], exclude=[], sensitive_attributes=[])
        session.add(collection)
        session.flush()
        for _ in range(90):
            close_run(session, open_run(session, collection.id, "recipe").id, RunStatus.DONE, {})
    catalog.close()
    with serving(settings, rates=GENEROUS) as url:
        page = browser.new_page(base_url=url, viewport=DESKTOP)
        page.goto("/nights")
        while page.locator("a.more").count():
            page.mouse.wheel(0, 2500)
            page.wait_for_timeout(60)
        page.wait_for_url("**after=*")
        page.reload()
        assert page.get_by_text("You are in the middle of the runs.").is_visible()
        page.get_by_role("link", name="Back to the beginning").click()
        page.get_by_role("link", name="90", exact=True).wait_for()
        while page.locator("a.more").count():
            page.mouse.wheel(0, 2500)
            page.wait_for_timeout(60)
        page.wait_for_url("**after=*")
        page.evaluate("scrollTo(0, 0)")
        page.wait_for_url("**/nights")
        page.reload()
        assert page.get_by_role("link", name="90", exact=True).is_visible()
        page.close()


def test_with_keys_a_filter_applies_once_it_is_chosen_and_the_focus_stays(page: "Page") -> None:
    focused = "document.activeElement.name"
    page.goto("/photographs?text=a")
    page.get_by_role("combobox", name="Faces").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.wait_for_timeout(300)
    assert page.url.endswith("/photographs?text=a")
    page.keyboard.press("Enter")
    page.wait_for_url("**/photographs?text=a&faces=without")
    assert page.evaluate(focused) == "faces"
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Tab")
    page.wait_for_url("**/photographs?text=a&faces=with")
    assert page.evaluate(focused) == "label"
    page.get_by_role("combobox", name="Faces").select_option("")
    page.wait_for_url("**/photographs?text=a")


def refuse_pictures(page: "Page") -> None:
    """Let the browser itself refuse the pictures of `add_photographs`: the service would look for each, again and again."""
    network = page.context.new_cdp_session(page)
    network.send("Network.enable")
    network.send("Network.setBlockedURLs", {"urls": ["*/picture?*"]})


def add_photographs(catalog: Catalog, numbers: range) -> None:
    """Enter photographs of no collection that could be read: the wall must do without their pictures."""
    with catalog.write() as session:
        if session.get(Collection, 1) is None:
            session.add(Collection(id=1, name="c", uri="/none", include=[], exclude=[], sensitive_attributes=[]))
            session.flush()
        described = {"status": "done", "recipe": "", "run_id": 1, "width": 300, "height": 200}
        session.add_all(
            Content(id=n, collection_id=1, sha256=f"{n:064d}", owner_image_id=n, **described) for n in numbers
        )
        session.flush()
        found = {"etag": "", "size": 1, "modified_at": now(), "status": "done", "collection_id": 1}
        session.add_all(Image(id=n, key=f"{n:04d}.jpg", content_id=n, **found) for n in numbers)


def test_the_door_opens_to_a_token_and_shows_only_what_its_role_may(
    browser: "Browser", tmp_path_factory: pytest.TempPathFactory
) -> None:
    settings = Settings(home=tmp_path_factory.mktemp("door"))
    catalog = Catalog(settings.catalog_url)
    add_photographs(catalog, range(1, 3))
    with catalog.write() as session:
        token = tokens.create(session, "reading room", Role.READ, timedelta(days=1))
    with serving(settings, rates=GENEROUS) as url:
        context = browser.new_context(base_url=url)
        page = context.new_page()
        page.goto("/photographs?order=oldest")
        assert barriers(page) == []
        page.get_by_label("Token").fill("visage_wrong")
        page.get_by_role("button", name="Sign in").click()
        page.get_by_text("this token is unknown here").wait_for()
        page.goto("/photographs?order=oldest")
        page.get_by_label("Token").fill(token)
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url("**/photographs?order=oldest")
        assert "reading room · read" in page.locator("header").inner_text()
        (cookie,) = context.cookies()
        assert cookie["httpOnly"]
        assert cookie["sameSite"] == "Lax"
        page.goto("/nights")
        assert page.get_by_role("button", name="Start").count() == 0
        csrf = page.locator("input[name=csrf]").first.get_attribute("value") or ""
        forged = context.request.post("/nights/start", form={"collection": "c"})
        assert (forged.status, "out of date" in forged.text()) == (403, True)
        refused = context.request.post("/nights/start", form={"collection": "c", "csrf": csrf})
        assert (refused.status, "needs the role curate" in refused.text()) == (403, True)
        page.get_by_role("button", name="Sign out").click()
        page.get_by_label("Token").wait_for()
        assert context.cookies() == []
        context.close()


def test_an_empty_catalog_says_the_command_that_fills_it(
    browser: "Browser", tmp_path_factory: pytest.TempPathFactory
) -> None:
    with serving(Settings(home=tmp_path_factory.mktemp("empty")), rates=GENEROUS) as url:
        page = browser.new_page(base_url=url)
        for path in ("/", "/nights"):
            page.goto(path)
            assert "visage collections add" in page.locator("pre").inner_text()
            assert barriers(page) == []
        page.goto("/people")
        assert "Nobody is in several photographs yet" in page.locator("main").inner_text()
        page.close()


def test_the_wall_weighs_little_beside_its_pictures(page: "Page") -> None:
    weights: dict[str, int] = {}

    def weigh(response: object) -> None:
        kind = response.headers.get("content-type", "")  # type: ignore[attr-defined]
        if not kind.startswith("image/jpeg"):
            weights[response.url] = len(response.body())  # type: ignore[attr-defined]

    page.on("response", weigh)
    page.goto("/photographs")
    page.wait_for_load_state("networkidle")
    assert len(weights) >= 3
    assert sum(weights.values()) < 100_000


def test_erasing_shows_what_goes_asks_for_the_word_and_gives_a_certificate(page: "Page") -> None:
    page.goto("/photographs?text=b.jpg")
    page.locator(".tile > a").first.click()
    page.get_by_role("link", name="Erase this photograph…").click()
    page.get_by_role("heading", name="This would go: a photograph").wait_for()
    assert barriers(page) == []
    assert page.locator(".faces img").count() == 1
    page.get_by_label("Reason, which the certificate keeps").fill("asked for by the person shown")
    page.get_by_label("Type the word erase").fill("no")
    page.get_by_role("button", name="Erase for good").click()
    assert "done=" not in page.url  # the browser holds it back
    page.get_by_label("Type the word erase").fill("erase")
    page.get_by_role("button", name="Erase for good").click()
    page.get_by_role("heading", name=re.compile("^Certificate [0-9]")).wait_for()
    assert "asked for by the person shown" in page.locator(".certificate").inner_text()
    page.goto("/photographs?text=b.jpg")
    assert page.locator(".tile").count() == 0


def test_whoever_a_picture_shows_is_looked_at_chosen_and_erased(page: "Page") -> None:
    page.goto("/erase")
    page.locator("input[type=file]").set_input_files(
        {"name": "coffee.jpg", "mimeType": "image/jpeg", "buffer": jpeg(landscape())}
    )
    page.get_by_role("alert").wait_for()
    assert "no face was found" in page.get_by_role("alert").inner_text()
    page.locator("input[type=file]").set_input_files(
        {"name": "two.jpg", "mimeType": "image/jpeg", "buffer": jpeg(pair(420))}
    )
    page.get_by_role("heading", name="2 faces in your photograph: choose whose traces are to go").wait_for()
    page.locator("svg.boxes a").nth(1).click()
    shown = page.locator("[data-answer]:visible")
    assert shown.count() == 1
    assert barriers(page) == []
    faces = shown.locator("input[name=face]")
    found = faces.count()
    assert found >= 2
    kept = faces.first.get_attribute("value")
    faces.first.uncheck()  # a look-alike: somebody else
    shown.get_by_role("button", name="See what would go").click()
    page.get_by_role("heading", name="This would go: whoever a photograph showed").wait_for()
    assert page.locator(".faces img").count() == found - 1
    page.get_by_label("Reason, which the certificate keeps").fill("asked for")
    page.get_by_label("Type the word erase").fill("erase")
    page.get_by_role("button", name="Erase for good").click()
    page.get_by_role("heading", name=re.compile("^Certificate [0-9]")).wait_for()
    assert "photo, asked for by local" in page.locator(".certificate").inner_text()
    assert page.goto(f"/faces/{kept}").status == 200  # type: ignore[union-attr]
    page.goto("/people?min_faces=1")
    assert page.locator(".faces .face").count() == 1
