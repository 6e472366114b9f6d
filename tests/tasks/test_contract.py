"""Results can be compared exactly when their contracts are equal."""

import json
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from models.attributes.dlib_age import DLIB_AGE
from models.recognition.dlib_resnet import DLIB_RESNET
from models.spec import Color, ModelSpec, Preprocess
from models.table import MODELS
from models.template import BoxTemplate, LandmarkTemplate, Template
from tasks.contract import contract, contract_content

pixels = st.floats(0, 512, width=32)
templates = st.one_of(
    st.builds(LandmarkTemplate, st.just("crop"), st.integers(8, 512), st.tuples(*[st.tuples(pixels, pixels)] * 5)),
    st.builds(BoxTemplate, st.just("crop"), st.integers(8, 512), st.floats(0, 2), pixels, st.booleans()),
)


@st.composite
def specs(draw: st.DrawFn) -> ModelSpec:
    template: Template = draw(templates)
    three = st.tuples(pixels, pixels, pixels)
    preprocess = Preprocess(template, draw(st.sampled_from(Color)), draw(three), draw(three))
    return replace(
        DLIB_RESNET, preprocess=preprocess, dimension=draw(st.integers(1, 4096)), scale=draw(st.integers(1, 8))
    )


digests = st.text("0123456789abcdef", min_size=64, max_size=64)


@given(specs(), specs(), digests, digests)
def test_contracts_are_equal_exactly_when_everything_that_decides_is(
    a: ModelSpec, b: ModelSpec, x: str, y: str
) -> None:
    def decides(spec: ModelSpec, digest: str) -> tuple[object, ...]:
        return spec.name, spec.role, spec.dimension, spec.scale, repr(spec.preprocess), digest

    assert (contract(a, x) == contract(b, y)) == (decides(a, x) == decides(b, y))


@given(specs(), digests)
def test_any_single_change_changes_the_contract(spec: ModelSpec, digest: str) -> None:
    before, preprocess = contract(spec, digest), spec.preprocess
    assert preprocess is not None
    assert spec.dimension is not None
    changed = [
        replace(spec, name="other"),
        replace(spec, dimension=spec.dimension + 1),
        replace(spec, scale=spec.scale + 1),
        replace(spec, preprocess=replace(preprocess, mean=(preprocess.mean[0] + 0.5, *preprocess.mean[1:]))),
        replace(spec, preprocess=replace(preprocess, std=(preprocess.std[0] + 0.5, *preprocess.std[1:]))),
        replace(
            spec,
            preprocess=replace(preprocess, template=replace(preprocess.template, size=preprocess.template.size + 1)),
        ),  # type: ignore[type-var]
        replace(spec, preprocess=replace(preprocess, template=replace(preprocess.template, fill=(0, 0, 1)))),  # type: ignore[type-var]
        replace(spec, preprocess=None),
    ]
    assert before not in {contract(other, digest) for other in changed}
    assert before != contract(spec, digest[::-1] + "0")


def test_words_about_a_model_are_no_part_of_its_contract() -> None:
    reworded = replace(DLIB_AGE, title="Years", notes="Better words.", paper="")
    assert contract(reworded, "0" * 64) == contract(DLIB_AGE, "0" * 64)


def test_content_is_json_that_names_the_weights_and_the_template() -> None:
    content = json.loads(contract_content(DLIB_RESNET, "ab" * 32))
    assert content["weights"] == "ab" * 32
    assert content["dimension"] == 128
    assert "dlib-150" in content["preprocess"]["template"]


def test_contract_of_the_default_embedder_is_what_it_was() -> None:
    """Catalogs in the field are keyed by it: a change here makes every installation compute everything anew."""
    digest = "af45be20aa81dcb9da5db26c6beaf0f2c5fc8d5dfdbe5ef6071e4fbd650b69ad"
    assert contract(DLIB_RESNET, digest) == "2a5ef5a01d857061"


def test_no_two_models_share_a_contract() -> None:
    assert len({contract(spec, "0" * 64) for spec in MODELS.values()}) == len(MODELS)
