"""What requests and answers hold, as the documentation of the interface shows it."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from rtdetrv4.runtime.slicing import MAX_OVERLAP, MIN_SIDE, OVERLAP, Slicing
from rtdetrv4.serving.uploads import FORM, IMAGE_FIELD, RAW, URL_FIELD

MAX_DETECTIONS, MAX_CLASSES = 10_000, 100
EXPECTED = {
    "conf": "a number from 0 to 1, or best",
    "classes": f"at most {MAX_CLASSES} names or indices of classes",
    "max_det": f"a whole number from 1 to {MAX_DETECTIONS}",
    "duplicates": "drop or keep",
    "slice": f"the side of a tile from {MIN_SIDE} to 99999 pixels, such as 640, or HEIGHTxWIDTH, such as 480x640",
    "overlap": f"a number from 0 to {MAX_OVERLAP}",
    "whole": "true or false",
    "format": "json, image or png",
}
"""What options may be, in words."""


def _possible_tiles(text: str | None) -> str | None:
    Slicing.of(text)
    return text


class PredictOptions(BaseModel):
    """What is wanted of a model."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    model: Annotated[str | None, Field(description="Name of the model, of those in `/models`. Default: the first.")] = (
        None
    )
    conf: Annotated[
        Annotated[float, Field(ge=0, le=1)] | Literal["best"],
        Field(
            description="Minimum confidence; best: for each class the one that was best in its validation.",
            examples=[0.25],
        ),
    ] = 0.25
    classes: Annotated[
        list[str], Field(description="Only this class, by name or index; may be repeated.", max_length=MAX_CLASSES)
    ] = []  # pydantic copies it
    max_det: Annotated[int | None, Field(ge=1, le=MAX_DETECTIONS, description="The most objects per image.")] = None
    duplicates: Annotated[
        Literal["drop", "keep"], Field(description="Second labels and nearly identical boxes of one object.")
    ] = "drop"
    slice: Annotated[
        str | None,
        Field(
            pattern=r"^\d{2,5}(x\d{2,5})?$",
            description=f"Detect in tiles of this many pixels of the image, from {MIN_SIDE}: 640, or HEIGHTxWIDTH.",
            examples=["640"],
        ),
        AfterValidator(_possible_tiles),
    ] = None
    overlap: Annotated[
        float, Field(ge=0, le=MAX_OVERLAP, description="Share of a tile that its neighbor shows too.")
    ] = OVERLAP
    whole: Annotated[bool, Field(description="With tiles, detect in the whole image as well.")] = True
    format: Annotated[
        Literal["json", "image", "png"],
        Field(description="json; or the one image with its boxes drawn: image for a JPEG file, or png."),
    ] = "json"


class DetectionOut(BaseModel):
    """A detected object."""

    class_id: Annotated[int, Field(description="Index of its class, from 0.")]
    category_id: Annotated[int, Field(description="Id of its class in the annotations.")]
    name: Annotated[str, Field(description="Name of its class.")]
    confidence: Annotated[float, Field(ge=0, le=1, description="With 4 decimals.")]
    xyxy: Annotated[
        list[float],
        Field(
            min_length=4,
            max_length=4,
            description="Left, top, right and bottom in pixels of the upright image, with 2 decimals.",
        ),
    ]


class ImageTimes(BaseModel):
    """Milliseconds of an image."""

    decode: float
    wait: Annotated[float, Field(description="In the queue.")]
    run: Annotated[float, Field(description="In the network, together with the others of its batch.")]


class ImageOut(BaseModel):
    """What was found in an image."""

    width: Annotated[int, Field(description="In pixels, turned upright as its EXIF data say.")]
    height: int
    detections: Annotated[list[DetectionOut], Field(description="By descending confidence.")]
    times_ms: ImageTimes


class Predictions(BaseModel):
    """What was found in all images of a request."""

    model_config: ClassVar[ConfigDict] = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "cells",
                    "images": [
                        {
                            "width": 640,
                            "height": 480,
                            "detections": [
                                {
                                    "class_id": 1,
                                    "category_id": 2,
                                    "name": "RBC",
                                    "confidence": 0.87,
                                    "xyxy": [190.6, 174.9, 248.5, 224.2],
                                }
                            ],
                            "times_ms": {"decode": 6.1, "wait": 0.4, "run": 31.0},
                        }
                    ],
                    "total_ms": 39.2,
                }
            ]
        }
    )

    model: str
    images: Annotated[list[ImageOut], Field(description="In the order of the request.")]
    total_ms: float


class ClassOut(BaseModel):
    """A class of a model."""

    id: int
    category_id: int
    name: str
    color: Annotated[str, Field(description="That of its boxes in drawn pictures, as #rrggbb.")]
    threshold: Annotated[float | None, Field(description="The confidence that was best in validation, if known.")]


class ModelOut(BaseModel):
    """A model that is served."""

    name: str
    architecture: str
    runtime: str
    precision: str
    width: Annotated[int, Field(description="Of the input of the network.")]
    height: int
    resize: Literal["stretch", "letterbox"]
    max_batch: int
    classes: list[ClassOut]


class LimitsOut(BaseModel):
    """What a request may hold."""

    request_bytes: int
    image_bytes: int
    images: int
    pixels: int
    tiles: int
    timeout_s: float


class ModelsOut(BaseModel):
    """All models, the one for requests that name none first."""

    version: str
    models: list[ModelOut]
    limits: LimitsOut


class ProblemDetails(BaseModel):
    """What is wrong with a request."""

    code: Annotated[str, Field(description="The kind, for programs.", examples=["image_too_large"])]
    what: Annotated[str, Field(description="What is wrong, for people.", examples=["an image is too large"])]
    got: Annotated[str | int | None, Field(description="What came.", examples=[None])]
    expected: Annotated[
        str | int | None, Field(description="What would have been taken.", examples=["at most 9 bytes"])
    ]


class Problem(BaseModel):
    """The answer to a request that is not served."""

    error: ProblemDetails


class State(BaseModel):
    """That the server is there, or ready."""

    status: Annotated[str, Field(examples=["alive"])]


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Documentation of the statuses that an operation answers beside 200."""
    return {status: {"model": Problem, "description": PROBLEMS[status]} for status in statuses}


PROBLEMS = {
    400: "The request is malformed.",
    401: "The token is missing or wrong.",
    403: "Pages of other servers, other names of this one, or URLs are not allowed.",
    404: "There is no such model.",
    408: "The body did not come in time.",
    413: "The body, an image, or the number of images, pixels or tiles is too large.",
    415: "The body is of a kind that is not read.",
    422: "An option is wrong, or an image cannot be read.",
    431: "The first line and the headers are too large.",
    429: "There is no room; the header Retry-After says in how many seconds there may be.",
    500: "The server is at fault.",
    503: "The server is stopping.",
    504: "The answer would have come too late.",
}


def predict_body(allows_urls: bool) -> dict[str, Any]:
    """Documentation of the body of `/predict`."""
    image = {"type": "string", "format": "binary"}
    fields: dict[str, Any] = {
        IMAGE_FIELD: {"type": "array", "items": image, "description": "Image files; the field is repeated for each."}
    }
    if allows_urls:
        fields[URL_FIELD] = {"type": "array", "items": {"type": "string", "format": "uri"}, "description": "Or URLs."}
    form = {"type": "object", "properties": fields, "additionalProperties": False}
    if not allows_urls:
        form["required"] = [IMAGE_FIELD]
    raw = {"schema": image}
    return {
        "required": True,
        "content": {
            FORM: {"schema": form},
            **dict.fromkeys(("image/jpeg", "image/png", "image/webp", RAW), raw),
        },
    }
