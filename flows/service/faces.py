"""A face of the catalog, as the API and the pages give it."""

from flows.service.dto import AttributeOut, FaceOut, RestorationOut
from infra.catalog.queries import views


def face_out(view: views.FaceView, image_id: int | None = None) -> FaceOut:
    """A face as the API gives it."""
    restoration = view.restoration
    return FaceOut(
        id=view.face_id,
        collection=view.collection,
        keys=list(view.keys),
        image_id=image_id,
        box=view.box,
        score=view.score,
        quality=view.quality,
        quality_parts=view.quality_parts,
        crop=f"/api/v1/faces/{view.face_id}/crop",
        identity_id=view.identity_id,
        identity_name=view.identity_name,
        attributes=[AttributeOut.model_validate(a) for a in view.attributes],
        restoration=None
        if restoration is None
        else RestorationOut(
            picture=f"/api/v1/faces/{view.face_id}/restored",
            accepted=restoration.accepted,
            reason=restoration.reason,
            identity_similarity=restoration.identity_similarity,
            fidelity=restoration.fidelity,
            model=restoration.model,
        ),
        embedding_restorer=view.embedding_restorer,
    )
