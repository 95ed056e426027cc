"""How the page says that something did not work."""

from __future__ import annotations

import functools
from collections.abc import Callable
from html import escape
from typing import Any, ParamSpec

import gradio as gr

from app.studio import InternalError, reporting
from models.errors import UserError

Given = ParamSpec("Given")

# Events that only look something up answer at once, past the queue of the long ones, and are no part of the API.
LIGHT: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


def warn(error: UserError | InternalError) -> None:
    """Show the error's sentences above the page."""
    gr.Warning(escape(str(error)))


def telling(callback: Callable[Given, Any]) -> Callable[Given, Any]:
    """``callback``, with an error told to the user and the page left as it was."""

    @functools.wraps(callback)
    def told(*args: Given.args, **kwargs: Given.kwargs) -> Any:
        try:
            with reporting():
                return callback(*args, **kwargs)
        except (UserError, InternalError) as error:
            warn(error)
        return gr.skip()

    return told
