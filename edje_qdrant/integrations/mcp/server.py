"""The tools as a server of the Model Context Protocol, with the official SDK."""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import Annotated, Any, Literal, TypeAlias

import anyio
import anyio.to_thread
from pydantic import BaseModel, Field, ValidationError

from edje_qdrant.errors import EdjeError, MissingExtraError
from edje_qdrant.integrations.mcp.schemas import (
    CollectionSummary,
    ExplainedMatch,
    FoundImages,
    Ingested,
    RankedImages,
    ThumbnailOf,
)
from edje_qdrant.integrations.mcp.tools import ImageTools, Picture
from edje_qdrant.search.options import NUM_CANDIDATES, TOP_K
from edje_qdrant.version import __version__

try:
    from mcp.server.mcpserver import MCPServer
    from mcp.server.mcpserver.exceptions import ToolError
    from mcp.server.transport_security import TransportSecuritySettings
    from mcp_types import CallToolResult, ImageContent, TextContent, ToolAnnotations
except ImportError as error:
    raise MissingExtraError("mcp", "mcp") from error

__all__ = ["ImageServer", "create_server"]

_MOST_IMAGES = 100
_MOST_CANDIDATES = 1000
_MOST_TEXT = 1000
_MOST_THUMBNAILS = 20
_SIDE, _LARGEST_SIDE = 256, 512

_INSTRUCTIONS = """\
Search a collection of images by what they show. search_images finds images by a description; a
second model reads the description together with each candidate, so write a whole sentence with
colours, counts and relations rather than keywords. similar_images finds images like given ones,
rerank orders given images by a description, explain tells which words an image supports, and
get_thumbnail shows an image. Images are named by their image_id."""

_Query = Annotated[
    str,
    Field(
        min_length=1,
        max_length=_MOST_TEXT,
        description="What the image shows, as a caption: 'a red star above a blue ring'.",
    ),
]
_ImageId = Annotated[str, Field(description="An image_id of another tool's result.")]
_TopK = Annotated[int, Field(ge=1, le=_MOST_IMAGES, description="Number of images to return.")]
_Filter = Annotated[
    dict[str, Any] | None,
    Field(
        description="Search only images whose payload has these values: field to value, or to a "
        "list of which any may match; dots name nested fields. Values are texts, whole numbers, "
        "true or false. collection_info names indexed fields."
    ),
]
_Fields = Annotated[
    list[str], Field(description="Payload fields to return with each image, such as 'album'.")
]
_Thumbnails = Annotated[
    bool,
    Field(
        description=f"Also return small JPEGs of the first {_MOST_THUMBNAILS} images. They take "
        "much of your context: ask only if you need to look."
    ),
]
_Side = Annotated[
    int, Field(ge=32, le=_LARGEST_SIDE, description="Longest side of the JPEG, in pixels.")
]
_Result: TypeAlias = "tuple[BaseModel, Iterable[Picture]]"


class ImageServer(MCPServer):
    """MCP server that refuses arguments that a tool does not have.

    Args:
        tools: What the tools do; `close` closes it.
    """

    def __init__(self, tools: ImageTools) -> None:
        super().__init__(
            "edje-qdrant",
            title="Image search",
            instructions=_INSTRUCTIONS,
            version=__version__,
            log_level="WARNING",
        )
        self.tools = tools
        self.busy = 0  # calls in progress, abandoned ones too
        self._one = anyio.Semaphore(1)

    async def list_tools(self) -> Any:
        """Return the tools; their schemas say that they take no other arguments."""
        listed = await super().list_tools()
        for tool in listed:
            tool.input_schema["additionalProperties"] = False
        return listed

    async def call_tool(self, name: str, arguments: dict[str, Any], context: Any = None) -> Any:
        """Call a tool.

        Raises:
            ToolError: It has no such argument, a value is not allowed, or as in the SDK.
        """
        for tool in await self.list_tools():
            known = tool.input_schema["properties"]
            unknown = sorted(set(arguments) - set(known))
            if tool.name == name and unknown:
                raise ToolError(
                    f"{name} has no argument {', '.join(map(repr, unknown))}; it takes "
                    f"{', '.join(known) or 'none'}"
                )
        try:
            return await super().call_tool(name, arguments, context)
        except ToolError as error:
            if isinstance(error.__cause__, ValidationError):
                told = [
                    f"{'.'.join(map(str, each['loc']))}: {each['msg']}"
                    for each in error.__cause__.errors()
                ]
                raise ToolError(f"{name} was called wrongly: {'; '.join(told)}") from error
            raise

    def http_app(self) -> Any:
        """Return the ASGI application that serves `/mcp`; its caller checks host, origin and key.

        Every request stands for itself, and is answered with JSON: no tool sends anything later.
        """
        unchecked = TransportSecuritySettings(enable_dns_rebinding_protection=False)
        return self.streamable_http_app(
            json_response=True, stateless_http=True, transport_security=unchecked
        )

    async def answer(self, work: Callable[[], _Result]) -> CallToolResult:
        """Run work in a thread, one call at a time, and return its result or our error."""

        def counted() -> tuple[BaseModel, list[Picture]]:
            self.busy += 1
            try:
                data, pictures = work()
                return data, [*pictures]
            finally:
                self.busy -= 1

        async with self._one:
            try:
                # Abandoned, so that a long call does not hold up the end of the server.
                data, pictures = await anyio.to_thread.run_sync(counted, abandon_on_cancel=True)
            except EdjeError as error:
                logging.getLogger(__name__).info("%s", error)
                return CallToolResult(
                    content=[TextContent(type="text", text=str(error))], is_error=True
                )
        content: list[Any] = [TextContent(type="text", text=data.model_dump_json())]
        for picture in pictures:
            content.append(TextContent(type="text", text=picture.label))
            if picture.data is not None:
                encoded = base64.b64encode(picture.data).decode("ascii")
                content.append(ImageContent(type="image", data=encoded, mime_type="image/jpeg"))
        return CallToolResult(content=content, structured_content=data.model_dump(mode="json"))


def create_server(tools: ImageTools) -> ImageServer:
    """Create the server with its tools; `ingest` only if folders for it were given.

    Args:
        tools: What the tools do.
    """
    server = ImageServer(tools)
    _add_search_tools(server)
    _add_image_tools(server)
    if tools.ingest_folders:
        _add_ingest(server)
    return server


def _reading(title: str) -> ToolAnnotations:
    return ToolAnnotations(
        title=title, read_only_hint=True, idempotent_hint=True, open_world_hint=False
    )


def _add_search_tools(server: ImageServer) -> None:
    tools = server.tools

    def with_thumbnails(found: FoundImages, wanted: bool) -> _Result:
        ids = [image.image_id for image in found.images[:_MOST_THUMBNAILS]]
        return found, tools.thumbnails(ids, _SIDE) if wanted else ()

    @server.tool(annotations=_reading("Search images by a description"))
    async def search_images(
        query: _Query,
        top_k: _TopK = TOP_K,
        num_candidates: Annotated[
            int,
            Field(
                ge=1,
                le=_MOST_CANDIDATES,
                description="Images of the first stage that are read together with the text; more "
                "is better and slower.",
            ),
        ] = NUM_CANDIDATES,
        filter: _Filter = None,
        min_score: Annotated[
            float | Literal["auto"] | None,
            Field(
                description="Leave out images below this score; 'auto' leaves out those that "
                "probably do not match, if the model is calibrated."
            ),
        ] = None,
        hybrid: Annotated[
            bool,
            Field(
                description="Find images by words of their captions and file names, too, such as "
                "names of places and people; for collections with text fields."
            ),
        ] = False,
        fields: _Fields = [],  # noqa: B006 - read only; a default in the schema
        thumbnails: _Thumbnails = False,
    ) -> Annotated[CallToolResult, FoundImages]:
        """Find the images that fit a description best.

        Returns ids, paths, scores and, for a calibrated model, the probability that each image
        matches. The order is what counts; a low probability of the first image means that the
        collection has no such image.
        """

        def work() -> _Result:
            found = tools.search(
                query,
                top_k=top_k,
                num_candidates=num_candidates,
                filter=filter,
                min_score=min_score,
                hybrid=hybrid,
                fields=fields,
            )
            return with_thumbnails(found, thumbnails)

        return await server.answer(work)

    @server.tool(annotations=_reading("Find images like given ones"))
    async def similar_images(
        image_ids: Annotated[
            list[str],
            Field(min_length=1, max_length=_MOST_IMAGES, description="Images to be like."),
        ],
        unlike: Annotated[
            list[str], Field(max_length=_MOST_IMAGES, description="Images to stay away from.")
        ] = [],  # noqa: B006 - read only; a default in the schema
        query: Annotated[
            str | None,
            Field(
                min_length=1,
                max_length=_MOST_TEXT,
                description="Rank the similar images by this description; without it they have no "
                "score.",
            ),
        ] = None,
        top_k: _TopK = TOP_K,
        filter: _Filter = None,
        fields: _Fields = [],  # noqa: B006 - read only; a default in the schema
        thumbnails: _Thumbnails = False,
    ) -> Annotated[CallToolResult, FoundImages]:
        """Find images of the collection that look like given images, and unlike others.

        The given images are not among the results.
        """

        def work() -> _Result:
            found = tools.similar(
                image_ids, unlike=unlike, query=query, top_k=top_k, filter=filter, fields=fields
            )
            return with_thumbnails(found, thumbnails)

        return await server.answer(work)

    @server.tool(annotations=_reading("Rank given images by a description"))
    async def rerank(
        query: _Query,
        image_ids: Annotated[
            list[str],
            Field(min_length=1, max_length=_MOST_CANDIDATES, description="Images to rank."),
        ],
        top_k: Annotated[
            int | None, Field(ge=1, description="Number of images to return; all by default.")
        ] = None,
    ) -> Annotated[CallToolResult, RankedImages]:
        """Rank given images of the collection by how well they fit a description.

        Use it to compare images that you know, or to ask several descriptions of the same images.
        """
        return await server.answer(lambda: (tools.rerank(query, image_ids, top_k=top_k), ()))


def _add_image_tools(server: ImageServer) -> None:
    tools = server.tools

    @server.tool(annotations=_reading("Explain why a description and an image match"))
    async def explain(
        query: _Query,
        image_id: _ImageId,
        picture: Annotated[
            bool, Field(description="Also return a small JPEG of the image, with where it matches.")
        ] = False,
    ) -> Annotated[CallToolResult, ExplainedMatch]:
        """Tell for each word of a description how much an image supports it, and where.

        Use it to check a result: a word with a weight of about 0 or less is not seen in the image.
        It takes about as long as scoring 50 images for each word.
        """

        def work() -> _Result:
            match, image, explanation = tools.explain(query, image_id)
            if not picture:
                return match, ()
            label = f"where {image_id} matches"
            return match, [Picture(label, tools.heat(image, explanation, _SIDE))]

        return await server.answer(work)

    @server.tool(annotations=_reading("Show an image"))
    async def get_thumbnail(
        image_id: _ImageId, size: _Side = _SIDE
    ) -> Annotated[CallToolResult, ThumbnailOf]:
        """Return an image of the collection as a small JPEG."""

        def work() -> _Result:
            shown, data = tools.thumbnail(image_id, size)
            return shown, [Picture(image_id, data)]

        return await server.answer(work)

    @server.tool(annotations=_reading("Describe the collection"))
    async def collection_info() -> Annotated[CallToolResult, CollectionSummary]:
        """Describe the collection: its size, its model, fields to filter by, what is possible."""
        return await server.answer(lambda: (tools.info(), ()))


def _add_ingest(server: ImageServer) -> None:
    writing = ToolAnnotations(
        title="Add images",
        read_only_hint=False,
        destructive_hint=False,
        idempotent_hint=True,
        open_world_hint=False,
    )

    @server.tool(annotations=writing)
    async def ingest(
        path: Annotated[
            str,
            Field(min_length=1, description="An image file or a folder, searched recursively."),
        ],
    ) -> Annotated[CallToolResult, Ingested]:
        """Add images to the collection; those that it has already are skipped.

        The path must lie in one of the folders that collection_info lists as ingest_folders.
        Unreadable files are listed, and do not stop it.
        """
        work = partial(server.tools.ingest, path)
        return await server.answer(lambda: (work(), ()))
