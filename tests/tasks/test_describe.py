"""Every attribute of every model reaches the catalog under its own name, by its own model, once per face."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PillowImage

from infra.catalog import collections, images, ledger
from infra.catalog.database import Catalog
from infra.catalog.queries import views
from infra.catalog.queries.opinions import UnknownAttribute, opinions
from infra.catalog.work import runs
from infra.settings import Settings
from infra.storage import Folder
from models.table import MODELS
from models.template import ARCFACE_112
from models.vocabulary import PARSING
from tasks.align import align_faces
from tasks.assess import assess
from tasks.decode import DecodeLimits, decode
from tasks.describe import Describe, in_photos
from tasks.detect import Decoded, Detect
from tasks.embed import Embed
from tasks.job import Job
from tasks.model_version import ModelVersion
from tasks.photo_faces import EMBEDDING, LANDMARKS, PhotoFaces, estimate
from tasks.pipeline import face_stages
from tasks.recipe import MEASURED_VERSION, Recipe, current_recipe, enter
from tasks.record import crop_writers, record
from tests.coverings import cover
from tests.models.attributes.golden import empty_checkpoint
from tests.portraits import Pixels, jpeg, pair, portrait
from tests.tasks.describers import GIVEN, by_chance, many, version_of

LIMITS = DecodeLimits(max_bytes=10**7, max_megapixels=10)
MEASURES = {attribute.name for attribute in MEASURED_VERSION.spec.attributes}


@pytest.fixture(scope="module")
def plain(weights_dir: Path, tracking_uri: str) -> Recipe:
    settings = Settings(weights=weights_dir, tracking_uri=tracking_uri, restore_model="", describe_models=())
    return current_recipe(settings, frozenset())


@pytest.fixture(scope="module")
def detect(plain: Recipe) -> Detect:
    return Detect(plain.detector, "cpu")


def describing(plain: Recipe, *versions: ModelVersion, sensitive: bool = True) -> Recipe:
    given = {a.name for version in versions for a in version.spec.attributes if sensitive or not a.sensitive}
    return replace(plain, describers=versions, attributes=frozenset(given))


def prepared(detect: Detect, recipe: Recipe, *pictures: Pixels) -> list[PhotoFaces]:
    found = detect([
        Decoded(PhotoFaces(i, f"{i}.jpg", len(data), content_id=i, sha256=str(i) * 64, width=p.width, height=p.height),
                p, data)
        for i, data in enumerate(map(jpeg, pictures), 1)
        for p in [decode(data, LIMITS, long_side=1280)]
    ])  # fmt: skip
    return assess([align_faces(item, LIMITS, recipe.templates) for item in found], recipe)


def through_stages(photos: list[PhotoFaces], job: Job) -> list[PhotoFaces]:
    for _, build in face_stages(job):
        photos = build()(photos)
    assert all(photo.failure is None for photo in photos), photos[0].failure
    return photos


@dataclass
class Place:
    catalog: Catalog
    crops: Folder
    settings: Settings

    def job(self, recipe: Recipe, photos: int) -> Job:
        with self.catalog.write() as session:
            collection = collections.add(session, "archive", "/photos", [], [], [])
            keys = [f"{i}.jpg" for i in range(1, photos + 1)]
            images.put_pending(
                session, collection.id, [images.Listed(key, "1", 10, datetime(2026, 1, 1, tzinfo=UTC)) for key in keys]
            )
            run = runs.open_run(session, collection.id, recipe.digest)
            contract = enter(session, recipe)
            images.claim(
                session, collection.id, run.id, recipe.digest, [(i, str(i) * 64) for i in range(1, photos + 1)]
            )
        return Job(self.settings, 1, "/photos", run.id, recipe, contract, "cpu", None)

    def faces(self) -> list[views.FaceView]:
        with self.catalog.read() as session:
            return views.faces(session, None, None, 0.0, 100)

    def record(self, job: Job, *photos: PhotoFaces) -> None:
        with crop_writers() as writers:
            record(self.catalog, self.crops, job, photos, writers)

    def problems(self, job: Job) -> tuple[str, ...]:
        with self.catalog.read() as session:
            return ledger.audit(session, 1, job.contract, len(job.recipe.stored_attributes)).problems


@pytest.fixture
def place(tmp_path: Path, catalog: Catalog) -> Place:
    return Place(catalog, Folder(tmp_path / "crops"), Settings(home=tmp_path))


def recorded(place: Place, detect: Detect, recipe: Recipe, *pictures: Pixels) -> tuple[Job, list[PhotoFaces]]:
    job = place.job(recipe, len(pictures))
    photos = through_stages(prepared(detect, recipe, *pictures), job)
    place.record(job, *photos)
    return job, photos


def said(face: views.FaceView, model: str) -> dict[str, views.AttributeView]:
    return {attribute.name: attribute for attribute in face.attributes if attribute.model == model}


def test_what_is_measured_is_recorded_of_every_face_without_any_model(
    place: Place, detect: Detect, plain: Recipe
) -> None:
    job, _ = recorded(place, detect, plain, portrait(400), pair(300))
    assert place.problems(job) == ()
    faces = place.faces()
    assert len(faces) == 3
    for face in faces:
        found = said(face, "measured@2")
        assert found.keys() == MEASURES == {attribute.name for attribute in face.attributes}
        assert (found["yaw"].unit, found["color"].label, found["beyond_border"].value) == ("degrees", "color", 0)
        assert all(attribute.confidence is None for attribute in found.values())
        assert face.quality_parts.keys() == {"sharpness", "size", "frontalness", "exposure", "detection"}
    first, left, right = (said(face, "measured@2") for face in faces)
    assert first["inter_eye_distance"].value == pytest.approx(400 / 12, abs=4)
    assert left["yaw"].value == pytest.approx(-right["yaw"].value, abs=5)  # one is the other's mirror image


def test_a_face_that_the_border_cuts_is_known_to_be_cut(place: Place, detect: Detect, plain: Recipe) -> None:
    cut = portrait(600)[:, 232:]
    recorded(place, detect, plain, cut)
    [face] = place.faces()
    found = said(face, "measured@2")
    assert 0.05 < found["beyond_border"].value < 0.6
    assert found["visibility"].value <= 1 - found["beyond_border"].value


def test_every_kind_of_attribute_is_kept_as_what_it_is(
    place: Place, detect: Detect, plain: Recipe, tmp_path: Path
) -> None:
    recipe = describing(plain, many(tmp_path))
    job, [photo] = recorded(place, detect, recipe, portrait(400))
    assert place.problems(job) == ()
    [face] = place.faces()
    found = said(face, "many@1")
    assert found.keys() == {attribute.name for attribute in GIVEN}
    assert (found["expression"].label, found["expression"].kind) == ("happiness", "category")
    assert (found["age"].unit, found["yaw"].unit, found["eyeglasses"].unit) == ("years", "degrees", "0..1")
    assert found["age"].confidence is None
    # The network's points are the middle of its crop: in the photo, where the template says that the middle lies.
    landmarks = torch.from_numpy(photo.arrays[LANDMARKS])
    middle = ARCFACE_112.transforms(torch.zeros(1, 4), landmarks)[0] @ torch.tensor([55.5, 55.5, 1])
    points = np.array(found["landmarks_29"].vector).reshape(29, 2)
    np.testing.assert_allclose(points, np.tile(middle.numpy(), (29, 1)), atol=0.01)
    assert len(found["occlusion_29"].vector) == 29
    mask = PillowImage.open(io.BytesIO((place.crops.root / found["parsing"].mask_key).read_bytes()))
    classes = np.array(mask)
    assert mask.text["Classes"].split(", ") == list(PARSING.classes)
    assert {PARSING.classes[i] for i in np.unique(classes[:20])} == {"hair"}
    assert {PARSING.classes[i] for i in np.unique(classes[20:])} == {"background"}


def test_masks_go_when_nothing_refers_to_them_any_more(
    place: Place, detect: Detect, plain: Recipe, tmp_path: Path
) -> None:
    recipe = describing(plain, many(tmp_path))
    job, photos = recorded(place, detect, recipe, pair(300))
    assert len(list(place.crops.root.rglob("*-parsing.png"))) == 2
    without = replace(job, recipe=describing(plain))
    with place.catalog.write() as session:
        without = replace(without, contract=enter(session, without.recipe))
    place.record(without, *photos)
    assert not list(place.crops.root.rglob("*.png"))
    place.record(job, *photos)
    with place.catalog.write() as session:
        images.put_pending(session, 1, [images.Listed("1.jpg", "2", 10, datetime(2026, 1, 2, tzinfo=UTC))])
        images.claim(session, 1, job.run_id, recipe.digest, [(1, "f" * 64)])
        session.flush()
        assert sorted(key.rpartition("-")[2] for key in ledger.prune(session, 1)) in (
            ["0.jpg", "1.jpg", "parsing.png", "parsing.png"], []
        )  # fmt: skip


def test_sensitive_attributes_that_are_off_are_not_computed(detect: Detect, plain: Recipe, tmp_path: Path) -> None:
    recipe = describing(plain, many(tmp_path), sensitive=False)
    stage = Describe(recipe.describers, recipe.attributes, "cpu")
    [(_, network)] = stage.models
    [photo] = stage(prepared(detect, recipe, portrait(400)))
    assert network.asked == [frozenset({a.name for a in GIVEN} - {"age"})]
    assert not [name for name in photo.arrays if ".age." in name]


def test_a_model_of_many_attributes_runs_once_per_face(detect: Detect, plain: Recipe, tmp_path: Path) -> None:
    recipe = describing(plain, many(tmp_path))
    stage = Describe(recipe.describers, recipe.attributes, "cpu")
    [(_, network)] = stage.models
    stage(prepared(detect, recipe, portrait(400), pair(300)))
    assert network.faces == 3


def test_two_versions_of_a_model_speak_side_by_side_and_are_compared(
    place: Place, detect: Detect, plain: Recipe, tmp_path: Path
) -> None:
    recipe = describing(plain, many(tmp_path, 1.0), many(tmp_path, 9.0, number=2))
    job, _ = recorded(place, detect, recipe, portrait(400), pair(300))
    assert place.problems(job) == ()
    for face in place.faces():
        one, other = said(face, "many@1"), said(face, "many@2")
        assert (one["expression"].label, other["expression"].label) == ("happiness", "neutral")
        assert one["age"].value != other["age"].value
    with place.catalog.read() as session:
        found = opinions(session, ["expression"], "archive", 10)
        [agreement] = found.agreements
        assert (agreement.first, agreement.second, agreement.faces) == ("many@1", "many@2", 3)
        assert (agreement.same_class, agreement.mean_difference, len(found.disagreements)) == (0, None, 3)
        assert {o.model for o in found.disagreements[0].opinions} == {"many@1", "many@2"}
        yaws = opinions(session, ["yaw"], None, 2)
        assert [(a.first, a.second) for a in yaws.agreements] == [
            ("measured@2", "many@1"), ("measured@2", "many@2"), ("many@1", "many@2"),
        ]  # fmt: skip
        differences = [row.difference for row in yaws.disagreements]
        assert differences == sorted(differences, reverse=True)
        assert len(differences) == 2
        assert yaws.agreements[0].mean_difference > 0
        with pytest.raises(UnknownAttribute, match="no face has mood; the catalog knows age, "):
            opinions(session, ["mood"], None, 2)


def test_a_face_turned_away_or_cut_off_is_described_less_surely(detect: Detect, plain: Recipe, tmp_path: Path) -> None:
    recipe = describing(plain, many(tmp_path))
    stage = Describe(recipe.describers, recipe.attributes, "cpu")
    whole, cut = stage(prepared(detect, recipe, portrait(600), portrait(600)[:, 232:]))

    def sure(photo: PhotoFaces, what: str) -> float:
        return float(photo.arrays[estimate(recipe.describers[0].contract, "expression", what)].max())

    visible = [p.arrays[estimate(MEASURED_VERSION.contract, "visibility", "value")].item() for p in (whole, cut)]
    assert visible[1] < visible[0] == pytest.approx(1, abs=0.02)
    for photo, share in zip((whole, cut), visible, strict=True):
        assert sure(photo, "confidence") == pytest.approx(sure(photo, "probabilities") * share)


def test_a_masked_face_is_described_less_surely_though_as_likely(detect: Detect, plain: Recipe, tmp_path: Path) -> None:
    recipe = describing(plain, many(tmp_path))
    stage = Describe(recipe.describers, recipe.attributes, "cpu")
    [bare] = stage(prepared(detect, recipe, portrait(512)))
    masked = cover(portrait(512), bare.arrays[LANDMARKS][0], "surgical mask", np.random.default_rng(0))
    [masked] = stage(prepared(detect, recipe, masked))

    def said(photo: PhotoFaces, version: ModelVersion, attribute: str, what: str) -> np.ndarray:
        return photo.arrays[estimate(version.contract, attribute, what)][0]

    for photo, share in ((bare, 0), (masked, 0.6)):
        assert said(photo, MEASURED_VERSION, "covered", "value") == pytest.approx(share)
        assert said(photo, MEASURED_VERSION, "visibility", "value") == pytest.approx(1 - share, abs=0.02)
        visible = said(photo, MEASURED_VERSION, "visibility", "value")
        surest = said(photo, recipe.describers[0], "expression", "probabilities").max()
        assert said(photo, recipe.describers[0], "expression", "confidence") == pytest.approx(surest * visible)


def test_a_model_that_holds_points_for_hidden_is_less_sure_of_its_other_attributes(
    detect: Detect, plain: Recipe, tmp_path: Path
) -> None:
    version = many(tmp_path)
    [photo] = prepared(detect, describing(plain, version), portrait(400))
    hidden = np.linspace(0, 1, 29)[None].astype(np.float32)  # fourteen of 29 above one half
    sure = np.full(1, 0.9, np.float32)
    names = {n: [estimate(version.contract, n, w) for w in ("value", "confidence")] for n in ("age", "occlusion_29")}
    found = {
        names["age"][0]: sure,
        names["age"][1]: sure,
        names["occlusion_29"][0]: hidden,
        names["occlusion_29"][1]: sure,
    }
    [given] = in_photos([photo], version, found)
    assert given.arrays[names["age"][1]].item() == pytest.approx(0.9 * 15 / 29)
    assert given.arrays[names["occlusion_29"][1]].item() == pytest.approx(0.9, abs=0.02)


# --- models of the literature, with weights of chance in their released layouts


def released(name: str, folder: Path, model: str, table: str = "state_dict.tsv") -> ModelVersion:
    spec = MODELS[name]
    return version_of(spec, spec.official(by_chance(empty_checkpoint(model, table))), folder, {model: "file"})


@pytest.fixture(scope="module")
def swinface(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelVersion, ModelVersion]:
    """SwinFace as it describes, and as it recognises: two models of one file."""
    folder = tmp_path_factory.mktemp("swinface")
    return released("swinface", folder, "swinface"), released("swinface-embedding", folder, "swinface")


@pytest.mark.slow
@pytest.mark.parametrize("catalog_url", ["sqlite"], indirect=True)
def test_swinface_recognises_and_describes_in_one_forward(
    place: Place, detect: Detect, plain: Recipe, swinface: tuple[ModelVersion, ModelVersion]
) -> None:
    describer, embedder = swinface
    recipe = replace(describing(plain, describer, sensitive=False), embedder=embedder)
    assert recipe.shared == describer
    job = place.job(recipe, 1)
    photos = prepared(detect, recipe, pair(300))
    [(name, build)] = face_stages(job)
    assert name == "embed"
    stage = build()
    seen: list[int] = []
    stage.network.backbone.patch_embed.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    [photo] = stage(photos)
    assert seen == [2]  # both faces, once
    place.record(job, photo)
    assert place.problems(job) == ()
    assert said(place.faces()[0], "swinface@1").keys() == recipe.attributes
    [apart] = Embed(embedder, "cpu")(photos)
    np.testing.assert_allclose(photo.arrays[EMBEDDING], apart.arrays[EMBEDDING], atol=1e-6)
    [described] = Describe([describer], recipe.attributes, "cpu")(photos)
    for column in (name for name in described.arrays if name.startswith(f"attribute.{describer.contract}.")):
        np.testing.assert_allclose(photo.arrays[column], described.arrays[column], atol=1e-5)


@pytest.mark.slow
def test_forwards_are_not_shared_between_different_checkpoints(
    plain: Recipe, swinface: tuple[ModelVersion, ModelVersion], tmp_path: Path
) -> None:
    describer, _ = swinface
    spec = MODELS["swinface-embedding"]
    other = version_of(spec, {"x": torch.zeros(1)}, tmp_path, {"another file": "other"})
    assert replace(describing(plain, describer), embedder=other).shared is None


@pytest.mark.parametrize("catalog_url", ["sqlite"], indirect=True)
def test_describers_of_the_literature_run_in_the_pipeline(
    place: Place, detect: Detect, plain: Recipe, tmp_path: Path, name: str, model: str, table: str
) -> None:
    version = released(name, tmp_path, model, table)
    recipe = describing(plain, version)
    job, _ = recorded(place, detect, recipe, portrait(400))
    assert place.problems(job) == ()
    [face] = place.faces()
    assert said(face, f"{name}@1").keys() == {attribute.name for attribute in version.spec.attributes}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "model" not in metafunc.fixturenames:
        return
    every: Sequence[tuple[str, str, str, pytest.MarkDecorator]] = (
        ("facexformer", "facexformer", "state_dict.tsv", pytest.mark.slow),
        ("faceptor-base", "faceptor", "state_dict_base.tsv", pytest.mark.long),
        ("faceptor-base-dense", "faceptor", "state_dict_base.tsv", pytest.mark.long),
        ("faceptor-full", "faceptor", "state_dict.tsv", pytest.mark.long),
        ("faceptor-full-dense", "faceptor", "state_dict.tsv", pytest.mark.long),
        ("faceptor-layer-attention", "faceptor", "state_dict_layer_attention.tsv", pytest.mark.long),
        ("faceptor-layer-attention-dense", "faceptor", "state_dict_layer_attention.tsv", pytest.mark.long),
        ("faceptor-naive", "faceptor", "state_dict_naive.tsv", pytest.mark.long),
        ("faceptor-naive-dense", "faceptor", "state_dict_naive.tsv", pytest.mark.long),
        ("swinface", "swinface", "state_dict.tsv", pytest.mark.long),
    )
    metafunc.parametrize("name,model,table", [pytest.param(*row[:3], marks=row[3], id=row[0]) for row in every])
