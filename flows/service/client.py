"""A thin, typed client of the API: `Client("http://localhost:8008", token)`. Answers are the service's own models."""

import json
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Literal, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, TypeAdapter

from flows.service.dto import (
    AlikeOut,
    AnswerOut,
    AuditOut,
    CertificateOut,
    CollectionOut,
    DecidedOut,
    DecisionOut,
    EvaluationOut,
    FaceOut,
    FailureOut,
    ForgottenOut,
    HealthOut,
    IdentityOut,
    ImageOut,
    JobOut,
    Me,
    ModelOut,
    Page,
    PlaceOut,
    PlanOut,
    ProgressOut,
    ProposalOut,
    ReadyOut,
    RemovalOut,
    RetriedOut,
    RolledBackOut,
    RunOut,
    ScheduleOut,
    StatusOut,
    UpgradeOut,
)
from flows.service.orders import (
    CollectionChange,
    CollectionIn,
    ErasureIn,
    ErasureOrder,
    FacesIn,
    OtherIn,
    PairIn,
    RemovalOrder,
    RetryIn,
    ScheduleIn,
)
from tasks.evaluation.fairness import FairnessReport

Answer = TypeVar("Answer")
Listed = TypeVar("Listed", bound=BaseModel)
Query = dict[str, Any]


class ServiceProblem(Exception):
    """The service refused or failed. `kind` is stable: 'not-found', 'role', 'too-large', ..."""

    def __init__(self, status: int, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.status, self.kind, self.detail = status, kind, detail


class Client:
    """One connection to a service.

    Every method raises ServiceProblem for an answer that is an error, and httpx.HTTPError where there is none.
    """

    def __init__(self, url: str, token: str | None = None, seconds: float = 60.0) -> None:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self.http = httpx.Client(base_url=f"{url.rstrip('/')}/api/v1", headers=headers, timeout=seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.http.close()

    def me(self) -> Me:
        return self._get("/me", Me)

    def health(self) -> HealthOut:
        return self._get("/health", HealthOut)

    def ready(self) -> ReadyOut:
        """Whether the service can do its work; unlike other answers, one that says no is not raised."""
        return ReadyOut.model_validate_json(self.http.get("/ready").content)

    def status(self) -> StatusOut:
        """Whether the last night of every collection was good."""
        return self._get("/status", StatusOut)

    def metrics(self) -> str:
        """What Prometheus reads."""
        return self._request("GET", "/metrics").text

    def collections(self) -> list[CollectionOut]:
        return self._get("/collections", Page[CollectionOut]).items

    def collection(self, name: str) -> CollectionOut:
        return self._get(f"/collections/{_part(name)}", CollectionOut)

    def add_collection(self, new: CollectionIn, idempotency_key: str | None = None) -> CollectionOut:
        return self._post("/collections", CollectionOut, new, idempotency_key)

    def change_collection(self, name: str, change: CollectionChange) -> CollectionOut:
        """Rename a collection, or look for its photographs in another place."""
        answer = self._request("PATCH", f"/collections/{_part(name)}", json=change.model_dump(mode="json"))
        return CollectionOut.model_validate_json(answer.content)

    def plan_removal(self, name: str) -> RemovalOut:
        """What removing a collection would take."""
        return self._get(f"/collections/{_part(name)}/removal", RemovalOut)

    def remove_collection(self, name: str, order: RemovalOrder, idempotency_key: str | None = None) -> CertificateOut:
        return self._post(f"/collections/{_part(name)}/removal", CertificateOut, order, idempotency_key)

    def start_run(self, collection: str, idempotency_key: str | None = None) -> JobOut:
        return self._post(f"/collections/{_part(collection)}/runs", JobOut, None, idempotency_key)

    def images(self, **wanted: Any) -> Iterator[ImageOut]:
        """All images that fit, page by page as they are looked at."""
        return self._all("/images", ImageOut, wanted)

    def image(self, image_id: int) -> ImageOut:
        return self._get(f"/images/{image_id}", ImageOut)

    def picture(self, image_id: int, size: int = 640) -> bytes:
        return self._request("GET", f"/images/{image_id}/picture", params={"size": size}).content

    def faces(self, **wanted: Any) -> Iterator[FaceOut]:
        return self._all("/faces", FaceOut, wanted)

    def face(self, face_id: int) -> FaceOut:
        return self._get(f"/faces/{face_id}", FaceOut)

    def crop(self, face_id: int) -> bytes:
        return self._request("GET", f"/faces/{face_id}/crop").content

    def restored(self, face_id: int) -> bytes:
        """The restored crop, whose detail is invented."""
        return self._request("GET", f"/faces/{face_id}/restored").content

    def neighbours(self, face_id: int, limit: int = 12) -> AnswerOut:
        return self._get(f"/faces/{face_id}/neighbours", AnswerOut, {"limit": limit})

    def search(self, photo: bytes, limit: int = 12) -> list[AnswerOut]:
        """Who looks like the faces in a photograph? It is not kept."""
        response = self._request("POST", "/search", params={"limit": limit}, files={"photo": ("photo", photo)})
        return TypeAdapter(list[AnswerOut]).validate_json(response.content)

    def identities(self, **wanted: Any) -> Iterator[IdentityOut]:
        return self._all("/identities", IdentityOut, wanted)

    def identity(self, identity_id: int) -> IdentityOut:
        return self._get(f"/identities/{identity_id}", IdentityOut)

    def runs(self, **wanted: Any) -> Iterator[RunOut]:
        return self._all("/runs", RunOut, wanted)

    def run(self, run_id: int) -> RunOut:
        return self._get(f"/runs/{run_id}", RunOut)

    def progress(self, run_id: int) -> ProgressOut:
        return self._get(f"/runs/{run_id}/progress", ProgressOut)

    def failures(self, **wanted: Any) -> Iterator[FailureOut]:
        return self._all("/failures", FailureOut, wanted)

    def retry(self, asked: RetryIn) -> RetriedOut:
        return self._post("/failures/retry", RetriedOut, asked)

    def name(self, identity_id: int, name: str) -> DecidedOut:
        """Call a person something."""
        answer = self._request("PUT", f"/identities/{identity_id}/name", json={"name": name})
        return DecidedOut.model_validate_json(answer.content)

    def decide(self, identity_id: int, what: Literal["confirm", "reject"], faces: list[int]) -> DecidedOut:
        """Say that faces are, or are not, this person."""
        return self._post(f"/identities/{identity_id}/{what}", DecidedOut, FacesIn(faces=faces))

    def split(self, faces: list[int]) -> DecidedOut:
        return self._post("/faces/split", DecidedOut, FacesIn(faces=faces))

    def merge(self, identity_id: int, other: int) -> DecidedOut:
        return self._post(f"/identities/{identity_id}/merge", DecidedOut, OtherIn(other=other))

    def undo(self, decision_id: int) -> DecidedOut:
        return self._post(f"/decisions/{decision_id}/undo", DecidedOut)

    def proposals(self, **wanted: Any) -> Iterator[ProposalOut]:
        return self._all("/proposals", ProposalOut, wanted)

    def answer(self, a: int, b: int, same: bool) -> DecidedOut:
        """Say of two identities of a proposal that they are one person, or two."""
        path = "/proposals/accept" if same else "/proposals/decline"
        return self._post(path, DecidedOut, PairIn(identity_a=a, identity_b=b))

    def ignore(self, identity_id: int) -> DecidedOut:
        """Leave a person out of lists and proposals."""
        return self._post(f"/identities/{identity_id}/ignore", DecidedOut)

    def ignore_faces(self, faces: list[int]) -> DecidedOut:
        return self._post("/faces/ignore", DecidedOut, FacesIn(faces=faces))

    def decisions(self, **wanted: Any) -> Iterator[DecisionOut]:
        """What people decided, the latest first; of one person, by `identity`."""
        return self._all("/decisions", DecisionOut, wanted)

    def schedules(self) -> list[ScheduleOut]:
        return self._get("/schedules", Page[ScheduleOut]).items

    def add_schedule(self, new: ScheduleIn, idempotency_key: str | None = None) -> ScheduleOut:
        return self._post("/schedules", ScheduleOut, new, idempotency_key)

    def pause_schedule(self, name: str) -> ScheduleOut:
        return self._post(f"/schedules/{_part(name)}/pause", ScheduleOut)

    def resume_schedule(self, name: str) -> ScheduleOut:
        return self._post(f"/schedules/{_part(name)}/resume", ScheduleOut)

    def remove_schedule(self, name: str) -> None:
        self._request("DELETE", f"/schedules/{_part(name)}")

    def plan_erasure(self, asked: ErasureIn) -> PlanOut:
        return self._post("/erasures/plan", PlanOut, asked)

    def plan_erasure_by_photo(self, photo: bytes, least: float | None = None) -> list[AlikeOut]:
        """What would go of each person in a photograph; it is not kept. Erase with `faces` and `by="photo"`."""
        params = {} if least is None else {"least": least}
        answer = self._request("POST", "/erasures/plan/photo", params=params, files={"photo": ("photo", photo)})
        return TypeAdapter(list[AlikeOut]).validate_json(answer.content)

    def erase(self, order: ErasureOrder, idempotency_key: str | None = None) -> CertificateOut:
        return self._post("/erasures", CertificateOut, order, idempotency_key)

    def erasures(self, **wanted: Any) -> Iterator[CertificateOut]:
        return self._all("/erasures", CertificateOut, wanted)

    def places(self) -> list[PlaceOut]:
        """Where content lies outside of the catalog, and what waits there to be removed."""
        return self._get("/places", Page[PlaceOut]).items

    def forget_place(self, place_id: int) -> ForgottenOut:
        """Say that a place is no more."""
        return ForgottenOut.model_validate_json(self._request("DELETE", f"/places/{place_id}").content)

    def audit(self, action: str = "", **wanted: Any) -> Iterator[AuditOut]:
        """Who did what, the latest first; of one kind of action, or its beginning."""
        return self._all("/audit", AuditOut, {"action": action, **wanted})

    def jobs(self, **wanted: Any) -> Iterator[JobOut]:
        return self._all("/jobs", JobOut, wanted)

    def job(self, job_id: int) -> JobOut:
        return self._get(f"/jobs/{job_id}", JobOut)

    def watch_job(self, job_id: int) -> Iterator[JobOut]:
        """The job each time that it changes, until it is over."""
        return self._watch(f"/jobs/{job_id}/events", JobOut)

    def watch_run(self, run_id: int) -> Iterator[ProgressOut]:
        return self._watch(f"/runs/{run_id}/progress/events", ProgressOut)

    def models(self) -> list[ModelOut]:
        return self._get("/models", Page[ModelOut]).items

    def model(self, name: str) -> ModelOut:
        return self._get(f"/models/{_part(name)}", ModelOut)

    def promote(self, name: str, version: int, force: bool = False) -> ModelOut:
        """Make a version champion; what makes the catalog's embeddings is only planned to be, and needs a backfill."""
        path = f"/models/{_part(name)}/versions/{version}/promote"
        return self._post(path, ModelOut, params={"force": force})

    def rollback(self, name: str) -> RolledBackOut:
        """Let queries and nights use the version again that was replaced."""
        return self._post(f"/models/{_part(name)}/rollback", RolledBackOut)

    def upgrade(self) -> UpgradeOut:
        return self._get("/upgrade", UpgradeOut)

    def start_backfill(self, idempotency_key: str | None = None) -> JobOut:
        return self._post("/upgrade/backfill", JobOut, None, idempotency_key)

    def watch_upgrade(self) -> Iterator[UpgradeOut]:
        """The upgrade each time that it gets on, until it is over."""
        return self._watch("/upgrade/events", UpgradeOut)

    def evaluations(self, **wanted: Any) -> Iterator[EvaluationOut]:
        return self._all("/evaluations", EvaluationOut, wanted)

    def evaluation(self, evaluation: str) -> EvaluationOut:
        """One with the names of its files."""
        return self._get(f"/evaluations/{evaluation}", EvaluationOut)

    def evaluation_file(self, evaluation: str, name: str) -> bytes:
        return self._request("GET", f"/evaluations/{evaluation}/files/{_part(name)}").content

    def fairness(self, evaluation: str) -> FairnessReport:
        """The report that an evaluation of fairness has stored."""
        return self._get(f"/evaluations/{evaluation}/fairness", FairnessReport)

    def _get(self, path: str, kind: type[Answer], params: Query | None = None) -> Answer:
        return TypeAdapter(kind).validate_json(self._request("GET", path, params=params).content)

    def _post(
        self,
        path: str,
        kind: type[Answer],
        body: BaseModel | None = None,
        idempotency_key: str | None = None,
        params: Query | None = None,
    ) -> Answer:
        headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
        content = None if body is None else body.model_dump(mode="json")
        answer = self._request("POST", path, json=content, headers=headers, params=params)
        return TypeAdapter(kind).validate_json(answer.content)

    def _all(self, path: str, kind: type[Listed], wanted: Query) -> Iterator[Listed]:
        after: str | None = None
        while True:
            page = self._get(path, Page[kind], {**wanted, **({} if after is None else {"after": after})})  # type: ignore[valid-type]
            yield from page.items
            if page.next is None:
                return
            after = page.next

    def _watch(self, path: str, kind: type[Listed]) -> Iterator[Listed]:
        with self.http.stream("GET", path, timeout=None) as response:
            if response.is_error:
                response.read()
                raise _problem(response)
            name = ""
            for line in response.iter_lines():
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: ") and name == "progress":
                    yield kind.model_validate_json(line.removeprefix("data: "))
                elif line.startswith("data: ") and name == "problem":
                    raise _told(json.loads(line.removeprefix("data: ")))

    def _request(self, method: str, path: str, **more: Any) -> httpx.Response:
        response = self.http.request(method, path, **more)
        if response.is_error:
            raise _problem(response)
        return response


def _part(name: str) -> str:
    """A name as one part of a path, whatever is in it."""
    return quote(name, safe="")


def _told(problem: dict[str, Any]) -> ServiceProblem:
    return ServiceProblem(problem["status"], problem["type"].rpartition(":")[2], problem["detail"])


def _problem(response: httpx.Response) -> ServiceProblem:
    try:
        return _told(response.json())
    except (json.JSONDecodeError, KeyError, TypeError):
        return ServiceProblem(response.status_code, "http", response.text[:500])
