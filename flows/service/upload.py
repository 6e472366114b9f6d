"""Uploads and forms, read into memory: a photograph that somebody searches with never touches the disk."""

from typing import Annotated

from fastapi import Depends, Request
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from flows.service.problems import Problem

PHOTO_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["photo"],
                    "properties": {"photo": {"type": "string", "format": "binary"}},
                }
            }
        },
    }
}


class InMemory(MultiPartParser):
    """A multipart parser that never spools to a file; the gate bounds what it reads."""

    spool_max_size = 0  # bytes in memory before a file is made of them; 0: never

    def on_end(self) -> None:
        self.complete = True

    complete = False


async def read_form(request: Request) -> FormData:
    """Read a form of either kind into memory.

    Raises:
        Problem: 415 for another kind of body; 400 for one that is cut off or garbled.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/x-www-form-urlencoded":
        return await request.form()
    if kind != "multipart/form-data":
        raise Problem(
            415, "media-type", "Not a form", "Send multipart/form-data, with the picture as the part 'photo'."
        )
    parser = InMemory(request.headers, request.stream(), max_files=1, max_fields=20)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise Problem(400, "form", "The form cannot be read", error.message) from error
    if not parser.complete:
        raise Problem(400, "cut-off", "The upload ended early", "The form breaks off before its end. Send it again.")
    return form


async def photo(request: Request) -> bytes:
    """The bytes of the part `photo`."""
    return photo_of(await read_form(request))


def photo_of(form: FormData) -> bytes:
    """The bytes of a form's photograph.

    Raises:
        Problem: 422 if the form has none.
    """
    part = form.get("photo")
    if not isinstance(part, UploadFile):
        raise Problem(422, "no-photo", "No picture came", "The form has no file in its part 'photo': choose a picture.")
    return part.file.read()


Photo = Annotated[bytes, Depends(photo)]
