"""The page's endpoints through Gradio's own client. No browser is needed for these."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image as PillowImage

from pipelines.media import load_artifact
from tests.browser.servers import Server

PAINT = "/generate_tiny_paint"


@pytest.fixture
def client(tiny_server: Server) -> Client:
    return Client(tiny_server.url, verbose=False)


def test_a_picture_comes_with_its_provenance(client: Client) -> None:
    [made] = client.predict(prompt="by a script", seed=7, steps=2, api_name=PAINT)
    assert (made["provenance"]["seed"], made["provenance"]["params"]["steps"]) == (7, 2)
    recipe = load_artifact(Path(made["file"])).provenance
    assert recipe and recipe.model_dump(mode="json") == made["provenance"]


def test_the_same_request_gives_the_same_bytes(client: Client) -> None:
    first, second = (client.predict(prompt="again", seed=3, api_name=PAINT)[0]["file"] for _ in range(2))
    assert Path(first).read_bytes() == Path(second).read_bytes()


def test_files_are_taken(client: Client, tmp_path: Path) -> None:
    for level in (40, 200):
        PillowImage.fromarray(np.full((8, 8, 3), level, np.uint8)).save(tmp_path / f"{level}.png")
    files = {"first_picture": handle_file(tmp_path / "40.png"), "second_picture": handle_file(tmp_path / "200.png")}
    [made] = client.predict(**files, share=0.25, api_name="/generate_tiny_blend")
    with PillowImage.open(made["file"]) as image:
        assert image.getpixel((0, 0)) == (80, 80, 80)


def test_the_endpoints_are_described_by_the_params(client: Client) -> None:
    described = client.view_api(return_format="dict")["named_endpoints"]
    made = {PAINT, "/generate_tiny_blend", "/generate_tiny_hum", "/generate_tiny_listen"}
    assert set(described) == made | {"/ask", "/machine", "/free"}
    parameters = {item["parameter_name"]: item for item in described[PAINT]["parameters"]}
    assert parameters["steps"]["type"] == {"type": "integer"} and parameters["steps"]["parameter_default"] == 3
    assert parameters["prompt"]["type"] == {"type": "string"}


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"steps": 0}, "'steps' cannot be '0'"),
        ({"steps": -1}, "'steps' cannot be '-1'"),
        ({"steps": 10**9}, "'steps' cannot be '1000000000'"),
        ({"strength": "NaN"}, "'strength' cannot be 'NaN'"),
        ({"seed": None}, "'seed' cannot be 'None'"),
        ({"prompt": " \n"}, "The prompt is empty."),
        ({"prompt": "x\0y"}, "characters that are not text"),
        ({"prompt": 5}, "'prompt' has to be text."),
        ({"prompt": {"path": "/etc/hostname"}}, "'prompt' has to be text."),
    ],
)
def test_bad_values_get_a_sentence(client: Client, values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(AppError, match=re.escape(sentence)):
        client.predict(**{"prompt": "a red apple"} | values, api_name=PAINT)


def test_a_file_that_is_no_picture_gets_a_sentence(client: Client, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    with pytest.raises(AppError, match="broken"):
        client.predict(
            first_picture=handle_file(broken), second_picture=handle_file(broken), api_name="/generate_tiny_blend"
        )


def call(server: Server, name: str, values: list[Any]) -> str:
    """The stream of events that a request without Gradio's client gets."""
    url = f"{server.url}/gradio_api/call/{name}"
    request = urllib.request.Request(url, json.dumps({"data": values}).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as response:
        event = json.load(response)["event_id"]
    with urllib.request.urlopen(f"{url}/{event}") as response:
        return str(response.read().decode())


@pytest.mark.parametrize("meta", [{"meta": {"_type": "gradio.FileData"}}, {}])
def test_files_of_the_machine_cannot_be_named(tiny_server: Server, tmp_path: Path, meta: dict[str, Any]) -> None:
    private = tmp_path / "private.png"
    PillowImage.fromarray(np.zeros((8, 8, 3), np.uint8)).save(private)
    forged = {"path": str(private), **meta}
    assert "event: complete" in call(tiny_server, "generate_tiny_hum", ["low", "high", 0])
    answer = call(tiny_server, "generate_tiny_blend", [forged, forged, 0, 0.5])
    assert "event: error" in answer and "event: complete" not in answer


def test_only_what_was_made_can_be_fetched(client: Client, tiny_server: Server) -> None:
    client.predict(prompt="anything", api_name=PAINT)
    for path in (tiny_server.folder / "library.sqlite", Path("/etc/hostname"), Path("app/settings.py")):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{tiny_server.url}/gradio_api/file={path}")
        assert refused.value.code == 403
