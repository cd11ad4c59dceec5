"""Serve a page of gradio on a bound address, with a policy that keeps the browser on it."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI, Request, Response

from lightning_guide.playground.page import STYLE

__all__ = ["application", "serve"]


# Scripts, styles, fonts and connections of this address alone; gradio's page has scripts and styles within it.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; frame-ancestors 'none'"
)


def application(page: gr.Blocks) -> FastAPI:
    """Return the application of `page`, whose answers carry the policy."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def confine(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = _POLICY
        return response

    theme = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    shown: dict[str, Any] = {"theme": theme, "css": STYLE, "show_error": False, "footer_links": []}
    return gr.mount_gradio_app(app, page, path="/", ssr_mode=False, pwa=False, **shown)


def serve(page: gr.Blocks, place: socket.socket) -> None:
    """Serve `page` on the bound socket `place` until a signal ends it."""
    config = uvicorn.Config(application(page), log_level="warning", timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[place])
