"""Alignment: crops lie where the template says, whatever the photo's rotation, size and borders."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from models import alignment
from models.alignment import View, align, align_views, blacken_outside, outside_share, part_under
from models.recognition.dlib_resnet import DLIB_RESNET
from models.restoration.dfdnet import DFDNET
from models.restoration.restoreformer import RESTOREFORMER, RESTOREFORMER_PLUS_PLUS
from models.spec import ModelSpec
from models.template import ARCFACE_112, BLACK, DLIB_64, DLIB_150, FACEXLIB_512, FFHQ_512, BoxTemplate, Template
from tests.models.bundled import golden_faces, photo
from tests.reference import seeded, shared

BOX_64 = BoxTemplate("box-64", 64, margin=0.2)
STRETCHED_64 = BoxTemplate("stretched-64", 64, square=False)
TEMPLATES = [DLIB_150, ARCFACE_112, FFHQ_512, BOX_64, STRETCHED_64]
FIRST = torch.zeros(1, dtype=torch.int64)


def face(centre: tuple[float, float], eyes: float, angle: float = 0.0) -> tuple[Tensor, Tensor]:
    """Box (1, 4) and landmarks (1, 5, 2) of a face whose eyes are `eyes` pixels apart."""
    points = torch.tensor(ARCFACE_112.points, dtype=torch.float64)
    points = (points - points.mean(dim=0)) * eyes / torch.dist(points[0], points[1])
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64)
    middle = torch.tensor(centre, dtype=torch.float64)
    box = torch.cat([middle - torch.tensor([1.0, 1.3]) * eyes, middle + torch.tensor([1.0, 1.3]) * eyes])
    return box[None], (points @ turn.T + middle)[None]


def positions(transform: Tensor, size: int) -> tuple[Tensor, Tensor]:
    y, x = torch.meshgrid(torch.arange(size).double(), torch.arange(size).double(), indexing="ij")
    places = transform.double() @ torch.stack([x.flatten(), y.flatten(), torch.ones(size * size)])
    return places[0].view(size, size), places[1].view(size, size)


def smooth(height: int, width: int) -> Tensor:
    coarse = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(0)) * 255
    return F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 255)[0].permute(1, 2, 0).round().byte()


@given(
    faces=st.lists(
        st.tuples(st.floats(-60, 360), st.floats(-60, 260), st.floats(8, 150), st.floats(-3, 3)), min_size=1, max_size=3
    )
)
def test_crops_of_the_part_under_them_are_to_the_bit_those_of_the_whole_photo(faces):
    whole = smooth(200, 300)
    boxes, landmarks = (torch.cat(p) for p in zip(*(face((x, y), *how) for x, y, *how in faces), strict=True))
    views = [View(t.transforms(boxes, landmarks).float(), t.size) for t in (DLIB_64, BOX_64, ARCFACE_112)]
    (left, top, right, bottom), of_part = part_under(views, 200, 300)
    part = whole[top:bottom, left:right].contiguous()
    owners = torch.zeros(len(faces), dtype=torch.int64)
    for crops, expected in zip(align_views([part], of_part, owners), align_views([whole], views, owners), strict=True):
        assert torch.equal(crops, expected)


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda t: t.name)
@pytest.mark.parametrize(("eyes", "angle"), [(25, 0.4), (60, -2.0), (170, 0.0)], ids=["small", "upside-down", "large"])
def test_every_crop_pixel_comes_from_where_the_template_says(template: Template, eyes: float, angle: float):
    y, x = torch.meshgrid(torch.arange(1100.0), torch.arange(1200.0), indexing="ij")
    ramps = torch.stack([x * 0.2, y * 0.22, (x + y) * 0.1], dim=2)
    transforms = template.transforms(*face((601.3, 548.8), eyes, angle))
    crop = align([ramps.round().byte()], transforms, FIRST, template.size)[0].double()
    at_x, at_y = positions(transforms[0], template.size)
    expected = torch.stack([at_x * 0.2, at_y * 0.22, (at_x + at_y) * 0.1], dim=2)
    # Half a grey level from rounding the photo, half from rounding the crop: together a fifth of a photo pixel in place.
    assert (crop - expected).abs().max() <= 1.01
    assert (crop - expected).mean(dim=(0, 1)).abs().max() < 0.06


@given(
    height=st.integers(1, 200),
    width=st.integers(1, 200),
    centre=st.tuples(st.floats(-60, 260), st.floats(-60, 260)),
    eyes=st.floats(2, 300),
    angle=st.floats(-3.2, 3.2),
    template=st.sampled_from([DLIB_64, ARCFACE_112, BOX_64, STRETCHED_64]),
    fill=st.sampled_from([BLACK, FACEXLIB_512.fill, (255, 0, 7)]),
    seed=st.integers(0, 99),
)
def test_faces_cut_all_at_once_as_on_a_gpu_are_those_cut_one_by_one(
    height, width, centre, eyes, angle, template, fill, seed
):
    generator = torch.Generator().manual_seed(seed)
    photos = [
        torch.randint(0, 256, (*size, 3), dtype=torch.uint8, generator=generator)
        for size in ((90, 50), (height, width))
    ]
    faces = [face(centre, eyes, angle), face((30.0, 40.0), 20), face((50.0, 45.0), eyes)]
    transforms = torch.cat([template.transforms(*found) for found in faces])
    index = torch.tensor([1, 0, 1])
    one_by_one = align(photos, transforms, index, template.size, fill)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alignment, "_one_by_one", alignment._together)
        patch.setattr(alignment, "PIXELS_AT_ONCE", 2 * template.size**2)
        at_once = align(photos, transforms, index, template.size, fill)
    assert (one_by_one.int() - at_once.int()).abs().max() <= 1


def test_whole_pixel_shift_is_a_copy():
    pixels = torch.randint(0, 256, (90, 120, 3), dtype=torch.uint8)
    shift = torch.tensor([[[1.0, 0.0, 17.0], [0.0, 1.0, 9.0]]])
    assert torch.equal(align([pixels], shift, FIRST, 64)[0], pixels[9:73, 17:81])


@pytest.mark.parametrize("template", [DLIB_150, ARCFACE_112, FFHQ_512], ids=lambda t: t.name)
@pytest.mark.parametrize(("eyes", "quarters"), [(40, 1), (130, 2), (40, 3)])
def test_rotating_photo_and_landmarks_gives_the_same_crop(template: Template, eyes: float, quarters: int):
    pixels = smooth(700, 700)
    box, points = face((352.5, 338.2), eyes, 0.3)
    turned, moved = pixels, points
    for _ in range(quarters):
        turned = torch.rot90(turned, -1, (0, 1))  # clockwise: (x, y) goes to (height - 1 - y, x)
        moved = torch.stack([699 - moved[..., 1], moved[..., 0]], dim=-1)
    upright = align([pixels], template.transforms(box, points), FIRST, template.size)
    rotated = align([turned], template.transforms(box, moved), FIRST, template.size)
    assert (upright.int() - rotated.int()).abs().max() <= 2


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda t: t.name)
@pytest.mark.parametrize("factor", [2, 3, 5])
def test_enlarging_photo_and_landmarks_gives_the_same_crop(template: Template, factor: int):
    pixels = smooth(300, 320)
    box, points = face((160.0, 150.0), 45)
    large = smooth(300 * factor, 320 * factor)
    scaled = box * factor, (points + 0.5) * factor - 0.5  # boxes are pixel edges, landmarks pixel centres
    small = align([pixels], template.transforms(box, points), FIRST, template.size)
    enlarged = align([large], template.transforms(*scaled), FIRST, template.size)
    difference = (small.int() - enlarged.int()).abs().float()
    assert difference.mean() < 1
    assert difference.max() <= 4


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda t: t.name)
@pytest.mark.parametrize("angle", [0.0, 0.5])
def test_shrunk_checkerboard_is_grey(template: Template, angle: float):
    y, x = torch.meshgrid(torch.arange(2400), torch.arange(2400), indexing="ij")
    board = ((x + y) % 2 * 255).byte()[..., None].expand(-1, -1, 3)
    # As large a face as shrinks by four: eyes one pixel apart shrink by `unit`.
    unit = float(template.transforms(*face((0, 0), 1))[0, :, :2].norm(dim=1).min())
    transforms = template.transforms(*face((1200.0, 1200.0), 4.3 / unit, angle))
    crop = align([board], transforms, FIRST, template.size)[0].float()
    middle = crop[template.size // 3 : 2 * template.size // 3, template.size // 3 : 2 * template.size // 3]
    assert (middle - 127.5).abs().max() <= 16


def test_outside_is_black_and_its_share_is_told():
    white = torch.full((200, 300, 3), 255, dtype=torch.uint8)
    transforms = torch.cat(
        [DLIB_150.transforms(*face(centre, 40)) for centre in ((150, 100), (0, 100), (299, 0), (900, 900))]
    )
    index = torch.zeros(4, dtype=torch.int64)
    crops = align([white], transforms, index, 150)
    shares = outside_share(transforms, torch.tensor([[200, 300]] * 4), 150)
    assert shares[0] == 0
    assert shares[3] == 1
    assert 0.4 < shares[1] < 0.6
    assert 0.65 < shares[2] < 0.85
    dark = (crops[..., 0] < 128).float().mean(dim=(1, 2))
    torch.testing.assert_close(dark, shares, rtol=0, atol=1e-3)
    assert (crops[0] == 255).all()
    assert not crops[3].any()
    blackened = torch.full_like(crops, 255)
    blacken_outside(blackened, transforms, torch.tensor([[200, 300]] * 4))
    torch.testing.assert_close((blackened == 0).float().mean(dim=(1, 2, 3)), shares)


@pytest.mark.parametrize("spec", [RESTOREFORMER, RESTOREFORMER_PLUS_PLUS, DFDNET], ids=lambda spec: spec.name)
def test_a_crop_beyond_the_border_is_the_one_that_the_restorer_s_official_code_cuts(spec: ModelSpec) -> None:
    official = np.load(shared(f"reference/{spec.name.rstrip('+')}/golden_pasteback.npz"))
    to_photo = official["up1.affine"] if "up1.affine" in official else inverse(official["affine"])
    picture = (seeded().seeded_image("photo-0", 512)[0, :, :300, :260] * 255).round().byte().permute(1, 2, 0)
    assert spec.preprocess is not None
    template = spec.preprocess.template
    crop = align([picture.contiguous()], torch.tensor(to_photo)[None], FIRST, 512, template.fill)[0, ::8, ::8]
    expected = torch.from_numpy(official["cropped_sub"])
    filled = (expected == torch.tensor(template.fill)).all(dim=2)
    assert 0.005 < filled.float().mean() < 0.05  # what lies outside
    assert torch.equal((crop == torch.tensor(template.fill)).all(dim=2), filled)
    # OpenCV weighs the four pixels by 32nds; and DFDNet's transform is told to three decimals.
    assert (crop.int() - expected.int()).abs().max() <= 15
    assert (crop.int() - expected.int()).float().abs().mean() < 0.5


def inverse(affine: np.ndarray) -> np.ndarray:
    return np.linalg.inv(np.vstack([affine, [0, 0, 1]]))[:2]


@pytest.mark.parametrize("fill", [FACEXLIB_512.fill, (255, 0, 7)])
@pytest.mark.parametrize("eyes", [20, 400])
def test_a_photo_of_the_fill_s_colour_has_no_border(fill: tuple[int, int, int], eyes: float) -> None:
    flat = torch.tensor(fill, dtype=torch.uint8).expand(301, 203, 3).contiguous()
    transforms = torch.cat([DLIB_64.transforms(*face(centre, eyes, 0.3)) for centre in ((3, 5), (200, 300), (-999, 0))])
    crops = align([flat], transforms, torch.zeros(3, dtype=torch.int64), 64, fill)
    assert torch.equal(crops, flat[0, 0].expand_as(crops))


@given(angle=st.floats(-math.pi, math.pi), eyes=st.floats(5, 400), x=st.floats(-300, 600), y=st.floats(-300, 500))
def test_outside_share_counts_the_pixels_whose_centre_is_outside(angle: float, eyes: float, x: float, y: float):
    transforms = ARCFACE_112.transforms(*face((x, y), eyes, angle))
    at_x, at_y = positions(transforms[0], 112)
    outside = (at_x < -0.5) | (at_x >= 299.5) | (at_y < -0.5) | (at_y >= 199.5)
    share = float(outside_share(transforms, torch.tensor([[200, 300]]), 112)[0])
    assert share == pytest.approx(float(outside.double().mean()), abs=2e-4)


def test_every_crop_comes_from_its_own_photo_whatever_the_batch():
    pictures = [smooth(300, 300), smooth(260, 410).flip(0), smooth(500, 333).flip(2)]
    index = torch.tensor([2, 0, 1, 2])
    transforms = torch.cat([DLIB_150.transforms(*face((150.0 + 3 * k, 130.0), 30 + 20 * k, 0.1 * k)) for k in range(4)])
    together = align(pictures, transforms, index, 150)
    for k, picture in enumerate(index.tolist()):
        assert torch.equal(together[k], align([pictures[picture]], transforms[k : k + 1], FIRST, 150)[0])


def test_only_the_part_under_the_face_is_read():
    # Ten gigapixels that exist only as a view: any copy of the whole would not fit.
    endless = torch.full((1, 1, 3), 90, dtype=torch.uint8).expand(100_000, 100_000, 3)
    crop = align([endless], DLIB_150.transforms(*face((70_000, 40_000), 300)), FIRST, 150)
    assert (crop == 90).all()


def test_no_faces_give_no_crops():
    assert align([], torch.zeros(0, 2, 3), torch.zeros(0, dtype=torch.int64), 112).shape == (0, 112, 112, 3)
    assert outside_share(torch.zeros(0, 2, 3), torch.zeros(0, 2), 112).shape == (0,)


def test_bad_input_is_refused_by_name():
    pixels = torch.zeros(50, 50, 3, dtype=torch.uint8)
    broken = torch.full((2, 2, 3), 1.0)
    broken[1, 0, 0] = math.nan
    with pytest.raises(ValueError, match=r"rows \[1\] are not finite"):
        align([pixels], broken, torch.zeros(2, dtype=torch.int64), 20)
    with pytest.raises(ValueError, match="photo 0"):
        align([pixels.float()], torch.zeros(1, 2, 3), FIRST, 20)


def test_dlib_s_descriptors_survive_our_own_extraction(bundled: Callable[[str], nn.Module]):
    network = bundled("dlib-resnet")
    assert DLIB_RESNET.preprocess is not None
    for entry in golden_faces("dlib_resnet"):
        points = torch.tensor(entry["mtcnn"]["points"])[None]
        crop = align([photo(entry)], DLIB_150.transforms(torch.zeros(1, 4), points), FIRST, 150)
        with torch.inference_mode():
            descriptor = network(DLIB_RESNET.preprocess(crop))[0]
        # The same face at dlib's own alignment lies up to 0.22 away; another person at least 0.5.
        assert torch.dist(descriptor, torch.tensor(entry["mtcnn"]["descriptor"])) < 0.1, entry["photo"]


# Who is in which photo, by the position of the face from left to right.
PEOPLE = {
    "alex": [("alex_lacamoire_img1.jpg", 0), ("t_alex_lacamoire1.jpg", 0)],
    "biden": [("biden.jpg", 0), ("biden_biden2.jpg", 0), ("t_obama_and_biden.jpg", 0), ("two_people.jpg", 1)],
    "obama": [
        ("obama-480p.jpg", 0),
        ("obama2.jpg", 0),
        ("obama_partial_face2.jpg", 0),
        ("t_obama_and_biden.jpg", 1),
        ("two_people.jpg", 0),
    ],
    "rose": [("rose_leslie_img1.jpg", 0), ("rose_leslie_img2.jpg", 0), ("t_kit_with_rose.jpg", 0)],
    "kit": [("t_kit_with_rose.jpg", 1)],
}


def test_people_are_told_apart_from_photo_to_descriptor(bundled: Callable[[str], nn.Module]):
    detector, embedder = bundled("mtcnn"), bundled("dlib-resnet")
    assert DLIB_RESNET.preprocess is not None
    names = sorted({name for faces in PEOPLE.values() for name, _ in faces})
    pictures = [torch.from_numpy(np.array(Image.open(shared(f"data/photos/{name}")).convert("RGB"))) for name in names]
    found = dict(zip(names, detector.detect(pictures), strict=True))
    crops, owners = [], []
    for person, places in PEOPLE.items():
        for name, place in places:
            chosen = found[name].boxes[:, 0].argsort()[place : place + 1]
            transforms = DLIB_150.transforms(found[name].boxes[chosen], found[name].landmarks[chosen])
            crops.append(align([pictures[names.index(name)]], transforms, FIRST, 150))
            owners.append(person)
    with torch.inference_mode():
        descriptors = embedder(DLIB_RESNET.preprocess(torch.cat(crops)))
    distances = torch.cdist(descriptors, descriptors)
    same = torch.tensor([[a == b for b in owners] for a in owners])
    assert distances[same].max() < 0.5
    assert distances[~same].min() > 0.6
