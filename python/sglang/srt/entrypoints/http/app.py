"""The web application: routes, middleware and error envelopes around one `ServerState`."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from sglang.srt.entrypoints.http import (
    health,
    info_routes,
    management_routes,
    native_routes,
    openai_routes,
)
from sglang.srt.entrypoints.http.errors import install_error_handlers
from sglang.srt.entrypoints.http.middleware import AuthMiddleware, BodyMiddleware
from sglang.srt.entrypoints.http.state import ServerState
from sglang.srt.environ import envs
from sglang.version import __version__


def create_app(state: ServerState) -> FastAPI:
    """The ASGI application of one server."""
    has_docs = not envs.DISABLE_OPENAPI_DOC.get()
    app = FastAPI(
        title="sglang",
        version=__version__,
        openapi_url="/openapi.json" if has_docs else None,
        docs_url="/docs" if has_docs else None,
        redoc_url=None,
        redirect_slashes=False,  # one path per route, so that the key check sees what is matched
    )
    app.state.server = state
    for module in (health, info_routes, management_routes, native_routes, openai_routes):
        app.include_router(module.router)
    install_error_handlers(app)
    # The last one added is the first one asked.
    app.add_middleware(BodyMiddleware)
    app.add_middleware(
        AuthMiddleware,
        api_key=state.server_args.api_key,
        admin_api_key=state.server_args.admin_api_key,
        management_paths=management_routes.PATHS,
    )
    app.add_middleware(
        CORSMiddleware, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"]
    )
    return app
