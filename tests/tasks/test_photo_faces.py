"""What travels between the stages arrives as it was sent."""

from dataclasses import fields

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from infra.catalog.work.failures import FailureRecord
from tasks.photo_faces import (
    BOXES,
    EMBEDDING,
    PORTRAIT,
    RESTORED_FACES,
    PhotoFaces,
    pack,
    quality_part,
    quality_parts,
    unpack,
)

KEYS = st.text(
    st.characters(exclude_categories=["Cs"]), min_size=1
)  # every key but lone surrogates, which no store has
SECONDS = st.dictionaries(st.sampled_from(["read", "decode", "detect"]), st.floats(0, 1e6))
FAILURES = st.builds(
    FailureRecord, key=KEYS, stage=st.text(max_size=9), reason=st.text(max_size=9), message=KEYS, retryable=st.booleans(),
    image_id=st.none() | st.integers(1, 2**62),
)  # fmt: skip


@st.composite
def arrays_of_faces(draw: st.DrawFn) -> dict[str, np.ndarray]:
    """Arrays of n faces, of which m were restored; n and m may be zero."""
    faces = draw(st.integers(0, 3))
    restored = draw(st.integers(0, faces))
    number = st.floats(width=32, allow_nan=True, allow_infinity=True)
    return {
        BOXES: draw(npst.arrays(np.float32, (faces, 4), elements=number)),
        EMBEDDING: draw(npst.arrays(np.float32, (faces, 7), elements=number)),
        PORTRAIT: draw(npst.arrays(np.uint8, (faces, 4, 4, 3))),
        RESTORED_FACES: draw(npst.arrays(np.int64, (restored,))),
    }


PHOTOS = st.builds(
    PhotoFaces, image_id=st.integers(1, 2**62), key=KEYS, size=st.integers(0, 2**40), etag=st.text(max_size=9),
    content_id=st.none() | st.integers(1, 2**62), sha256=st.text("0123456789abcdef", max_size=64), shared=st.booleans(),
    format=st.sampled_from(["", "jpeg"]), width=st.integers(0, 2**20), height=st.integers(0, 2**20),
    taken_at=st.none() | st.just("1923-04-17T12:00:00"), notes=st.lists(KEYS, max_size=3).map(tuple),
    failure=st.none() | FAILURES, seconds=SECONDS, arrays=arrays_of_faces() | st.just({}),
)  # fmt: skip


@given(PHOTOS)
def test_a_packed_photo_arrives_as_it_was_sent(photo: PhotoFaces) -> None:
    arrived = unpack(pack(photo))
    for name in (field.name for field in fields(PhotoFaces) if field.name != "arrays"):
        assert getattr(arrived, name) == getattr(photo, name), name
    assert arrived.arrays.keys() == photo.arrays.keys()
    for name, sent in photo.arrays.items():
        assert arrived.arrays[name].dtype == sent.dtype
        np.testing.assert_array_equal(arrived.arrays[name], sent)
    assert arrived.face_count == photo.face_count


def test_views_of_other_arrays_are_packed_as_they_look() -> None:
    pixels = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    photo = PhotoFaces(1, "a.jpg", 1).having(portrait=pixels[::-1, :, ::-1], other=np.asfortranarray(pixels[0, ..., 0]))
    arrived = unpack(pack(photo))
    np.testing.assert_array_equal(arrived.arrays["portrait"], pixels[::-1, :, ::-1])
    np.testing.assert_array_equal(arrived.arrays["other"], pixels[0, ..., 0])


def test_a_failed_photo_carries_nothing_half_done() -> None:
    photo = PhotoFaces(5, "a.jpg", 1).having(**{BOXES: np.zeros((2, 4), np.float32)})
    failed = photo.failed("embed", "error", "why", retryable=True)
    assert failed.face_count == 0
    assert failed.arrays == {}
    assert failed.failure == FailureRecord("a.jpg", "embed", "error", "why", True, image_id=5)
    assert photo.face_count == 2  # photos are values: the one it came from stays


def test_the_parts_of_the_quality_are_found_by_their_names_alone() -> None:
    arrays = {quality_part("sharpness"): np.ones(2), "quality": np.zeros(2), "qualityx.pose": np.zeros(2)}
    assert quality_parts(arrays).keys() == {"sharpness"}


def test_time_of_a_stage_adds_up() -> None:
    assert PhotoFaces(1, "a", 1).timed("read", 1.0).timed("read", 2.0).timed("align", 0.5).seconds == {
        "read": 3.0, "align": 0.5,
    }  # fmt: skip
