"""``/metrics``: the manager's counters and what memory is in use now, in Prometheus' text format."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from app.studio import Studio

TEXT_FORMAT = "text/plain; version=0.0.4"


def metrics_route(studio: Studio) -> Route:
    """A route for the web server beside the page's own."""

    def metrics(request: Request) -> PlainTextResponse:
        state = studio.machine()
        gauges: dict[str, float] = {
            "model_bytes": state.used_bytes,
            "budget_bytes": state.budget_bytes,
            "rss_bytes": state.rss_bytes,
            "models_loaded": sum(not model.loading for model in state.models),
        }
        return PlainTextResponse(state.metrics.prometheus(gauges), media_type=TEXT_FORMAT)

    return Route("/metrics", metrics)
