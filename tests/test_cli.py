"""The command line: what it writes, what it prints, and with which code it ends."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from app import commands, doctor
from app.commands import progress_bar
from app.settings import Settings
from app.target import Target, choose_route
from models.errors import UserError
from pipelines.base import Progress, Registry
from pipelines.media import load_artifact
from tests.command_lines import Run, everything_local, files, free_port

ROOT = Path(__file__).parent.parent


def test_a_prompt_becomes_a_file_with_its_provenance(run: Run) -> None:
    code, out, err = run("generate", "a red apple", "-o", "apple.png", "--seed", "3")
    assert (code, out, err) == (0, "apple.png\n", "")
    assert files() == ["apple.png", "apple.png.json"]
    made = load_artifact(Path("apple.png"))
    assert made.medium == "image" and made.provenance is not None
    assert made.provenance.pipeline == "tiny-paint" and made.provenance.seed == 3


def test_the_same_command_gives_the_same_bytes(run: Run) -> None:
    for name in ("one.png", "two.png"):
        assert run("generate", "a red apple", "-o", name, "--seed", "3")[0] == 0
    assert run("generate", "a red apple", "-o", "three.png", "--seed", "4")[0] == 0
    one, two, three = (Path(name).read_bytes() for name in ("one.png", "two.png", "three.png"))
    assert one == two != three


def test_json_lines_carry_the_provenance(run: Run) -> None:
    code, out, _ = run("generate", "a pear", "-o", "pear.webp", "--json", "--set", "num_images=2", "steps=1")
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [line["path"] for line in lines] == ["pear-1.webp", "pear-2.webp"]
    for index, line in enumerate(lines):
        assert line["provenance"]["params"]["num_images"] == 2 and line["provenance"]["index"] == index
        assert load_artifact(Path(line["path"])).content_hash() == line["content_hash"]


def test_a_folder_takes_every_result_and_keeps_those_of_other_seeds(run: Run) -> None:
    for seed in ("1", "2", "2"):
        assert run("generate", "A Red/Apple ..", "-o", "new/folder", "--seed", seed)[0] == 0
    pictures = [name for name in files() if not name.endswith(".json")]
    assert len(pictures) == 2 and all(name.startswith("new/folder/a-red-apple-") for name in pictures)
    code, out, _ = run("generate", "one", "two", "-o", "both/")
    assert code == 0 and [Path(line).suffix for line in out.split()] == [".wav", ".png"]


def test_the_route_is_chosen_by_the_inputs_and_the_ending(run: Run) -> None:
    assert run("generate", "low", "high", "-o", "hum.flac")[0] == 0
    assert run("generate", "low", "high", "-o", "hum.png")[0] == 0
    assert files() == ["hum.flac", "hum.flac.json", "hum.png", "hum.png.json"]
    assert run("generate", "x", "-o", "a.png")[0] == run("generate", "y", "-o", "b.png")[0] == 0
    assert run("generate", "--input", "a.png", "b.png", "-o", "blend.png", "--set", "share=0.3")[0] == 0
    assert load_artifact(Path("blend.png")).provenance.pipeline == "tiny-blend"  # type: ignore[union-attr]
    assert run("generate", "-o", "c.png", "z", "--pipeline", "tiny-paint")[0] == 0


BAD = {
    "no OUT": (["generate", "x"], "where to write"),
    "unknown ending": (["generate", "x", "-o", "apple.exe"], ".exe"),
    "no route": (["generate", "x", "-o", "apple.glb"], "'.glb'"),
    "no inputs": (["generate", "-o", "apple.png"], "nothing"),
    "wrong ending for the pipeline": (["generate", "x", "--pipeline", "tiny-paint", "-o", "a.wav"], "'.wav'"),
    "wrong inputs for the pipeline": (["generate", "x", "--pipeline", "tiny-blend", "-o", "a.png"], "text"),
    "unknown pipeline": (["generate", "x", "--pipeline", "nobody", "-o", "a.png"], "nobody"),
    "unknown setting": (["generate", "x", "-o", "a.png", "--set", "colour=red"], "colour"),
    "no equals sign": (["generate", "x", "-o", "a.png", "--set", "steps"], "steps"),
    "steps 0": (["generate", "x", "-o", "a.png", "--set", "steps=0"], "steps"),
    "steps -1": (["generate", "x", "-o", "a.png", "--set", "steps=-1"], "steps"),
    "steps 10^9": (["generate", "x", "-o", "a.png", "--set", "steps=1000000000"], "steps"),
    "a number of 5000 digits": (["generate", "x", "-o", "a.png", "--set", "steps=" + "9" * 5000], "steps"),
    "deep JSON": (["generate", "x", "-o", "a.png", "--set", "steps=" + "[" * 100_000], "steps"),
    "NaN": (["generate", "x", "-o", "a.png", "--set", "strength=NaN"], "strength"),
    "infinity": (["generate", "x", "-o", "a.png", "--set", "strength=1e999"], "strength"),
    "text for a number": (["generate", "x", "-o", "a.png", "--set", "strength=much"], "strength"),
    "negative seed": (["generate", "x", "-o", "a.png", "--seed", "-1"], "seed"),
    "huge seed": (["generate", "x", "-o", "a.png", "--seed", str(10**30)], "seed"),
    "seed that is no number": (["generate", "x", "-o", "a.png", "--seed", "one"], "seed"),
    "blank prompt": (["generate", "  ", "-o", "a.png"], ""),
    "undecodable prompt": (["generate", "\udcff", "-o", "a.png"], "characters"),
    "missing input": (["generate", "--input", "no.png", "no.png", "-o", "a.png"], "no.png"),
    "missing folder": (["generate", "x", "-o", "no/folder/a.png"], "no/folder"),
    "unknown profile": (["generate", "x", "-o", "a.png", "--profile", "huge"], "huge"),
    "port out of range": (["serve", "--port", "70000"], "70000"),
    "unknown command": (["paint"], "paint"),
    "no command": ([], "COMMAND"),
    "unknown pipeline to list": (["pipelines", "nobody"], "nobody"),
    "unknown model to fetch": (["models", "fetch", "nobody"], "nobody"),
    "unknown model to verify": (["models", "verify", "crossflow", "nobody"], "nobody"),
    "unknown action on models": (["models", "paint"], "paint"),
    "one model and all of them": (["models", "free", "crossflow", "--all"], "--all"),
    "no address": (["models", "free", "--url", "file:///etc/hostname"], "file:///etc/hostname"),
    "model that is not there": (["models", "--local-weights", '{"nobody": "/"}'], "nobody"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_done_is_one_line_and_code_2_with_nothing_written(run: Run, case: str) -> None:
    arguments, names = BAD[case]
    code, out, err = run(*arguments)
    assert code == 2 and out == ""
    assert err.count("\n") == 1 and names in err and len(err) < 500 and "Traceback" not in err
    assert files() == []


def test_a_text_file_that_is_no_picture_is_refused(run: Run) -> None:
    Path("a.png").write_bytes(b"\x89PNG not really")
    code, _, err = run("generate", "--input", "a.png", "a.png", "-o", "b.png")
    assert code == 2 and "a.png" in err and not Path("b.png").exists()


def test_a_folder_without_permission_is_refused_before_the_work(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the tests may run as root, who may write anywhere
    for out in ("a.png", "new/"):
        code, _, err = run("generate", "x", "-o", out)
        assert code == 2 and "Nothing can be written" in err and files() == []


def test_a_full_disk_at_the_end_leaves_no_half_file(run: Run) -> None:
    limit = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64)); "
    code = limit + (
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "import numpy as np; from app.target import Target; from pipelines.media import Image\n"
        "Target.parse('big.png').save([Image(np.random.default_rng(0).integers(0, 255, (50, 50, 3), np.uint8))], 'x')"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "UserError: There is no space left" in result.stderr
    assert not Path("big.png").exists() and not any(Path(".").glob(".*.tmp"))


def test_a_bug_ends_with_code_1_and_an_id(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    code, out, err = run("generate", "x", "-o", "a.png", "--set", "fail=true")
    assert code == 1 and out == "" and files() == []
    assert err.count("\n") == 1 and err.split()[-1].strip(".") in caplog.text


def test_values_are_json_where_they_are_json(run: Run) -> None:
    _, out, _ = run("generate", "x", "-o", "a.png", "--json", "--set", "note=null", "steps=2", "--set", "strength=0.5")
    assert (
        json.loads(out)["provenance"]["params"] | {"note": None, "steps": 2, "strength": 0.5}
        == json.loads(out)["provenance"]["params"]
    )
    for given, kept in (('note="12"', "12"), ("note=a = b", "a = b"), ("note=", ""), ("note={x", "{x")):
        code, out, _ = run("generate", "x", "-o", "a.png", "--json", "--set", given)
        assert code == 0 and json.loads(out)["provenance"]["params"]["note"] == kept


def test_pipelines_lists_what_the_declarations_say(run: Run) -> None:
    code, out, _ = run("pipelines")
    assert code == 0
    for words in (
        "tiny-paint: Paints a small pattern. (text -> image)",
        "steps",
        "Brush strokes. (integer 1..100; by default 3)",
    ):
        assert words in out
    assert "(text or null; by default null)" in out
    code, out, _ = run("pipelines", "tiny-hum", "--json")
    [only] = json.loads(out)
    assert only["name"] == "tiny-hum" and only["params"]["properties"]["seed"]["maximum"] == 2**31 - 1
    code, out, _ = run("generate", "--pipeline", "tiny-blend", "--help-params")
    assert code == 0 and "How much of the second." in out and "tiny-paint" not in out


def test_the_doctor_finds_a_sound_machine_sound(run: Run, painter_folder: Path) -> None:
    port = str(free_port())
    arguments = ("doctor", "--local-weights", everything_local(painter_folder), "--port", port, "--device", "cpu")
    code, out, _ = run(*arguments, "--memory-budget-gb", "1", "--json")
    checks = {check["name"]: check for check in json.loads(out)}
    assert code == 0 and {check["status"] for check in checks.values()} <= {"ok", "warn"}
    assert set(checks) >= {
        "python",
        "torch",
        "device",
        "memory",
        "pipelines",
        "model crossflow",
        "output folder",
        "port",
    }
    assert "hub" not in checks and files() == []
    assert len(run(*arguments)[1].splitlines()) == len(checks)


def test_the_doctor_names_each_fault_and_what_to_do(run: Run, painter_folder: Path) -> None:
    Path("outputs").write_text("a file")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        local = json.dumps({**json.loads(everything_local(painter_folder)), "autoencoder": "/no/such/folder"})
        code, out, _ = run(
            "doctor", "--json", "--local-weights", local, "--port", str(port), "--device", "cuda:99",
            "--memory-budget-gb", "0.000001", "--output-folder", "outputs",
        )  # fmt: skip
    checks = {check["name"]: check for check in json.loads(out)}
    assert code == 1
    for name in ("device", "memory", "model autoencoder", "output folder", "port"):
        assert checks[name]["status"] == "fail" and checks[name]["detail"] and checks[name]["advice"], name
    assert checks["model crossflow"]["status"] == "ok"


def test_a_check_that_breaks_does_not_stop_the_others(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(profile: str) -> Registry:
        raise ImportError("a third party's pipeline")

    monkeypatch.setattr(doctor, "installed_registry", broken)
    code, out, _ = run("doctor", "--json", "--port", str(free_port()))
    checks = {check["name"]: check for check in json.loads(out)}
    assert code == 1 and "third party" in checks["pipelines"]["detail"] and "port" in checks


def test_a_port_in_use_is_one_sentence(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = run("serve", "--port", str(port))
        assert code == 2 and err.startswith(f"Port {port} on '127.0.0.1' is already in use.") and files() == []
    doctor.check_port("127.0.0.1", port)
    for host in ("no.such.host.invalid", "\0", "x" * 300, "203.0.113.1"):
        with pytest.raises(UserError):
            doctor.check_port(host, port)


def test_progress_is_drawn_on_a_terminal_only() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream in (Terminal(), io.StringIO()):
        with progress_bar(stream) as bar:
            bar(Progress(1, 2, "Painting"))
            bar(Progress(0, 0, "Loading"))
        assert ("1/2 Painting" in stream.getvalue()) == stream.isatty()
        assert stream.isatty() or stream.getvalue() == ""


@pytest.mark.parametrize(
    ("out", "suffix", "media"),
    [
        ("a.PNG", ".png", ("image",)), ("a.b.webp", ".webp", ("image", "video")),
        ("scan.nii.gz", ".nii.gz", ("scan",)), ("a.txt", ".txt", ("text",)),
    ],
)  # fmt: skip
def test_an_ending_says_which_media_fit(out: str, suffix: str, media: tuple[str, ...]) -> None:
    target = Target.parse(out)
    assert (target.suffix, target.media) == (suffix, media)


def test_several_results_are_numbered_before_the_whole_ending(tiny_registry: Registry) -> None:
    target = Target.parse("x/scan.nii.gz")
    paths = target._paths([None, None], "title")  # type: ignore[list-item]
    assert paths == [Path("x/scan-1.nii.gz"), Path("x/scan-2.nii.gz")]
    pipeline, route = choose_route(tiny_registry, None, ["text", "text"], Target.parse("folder/"))
    assert (pipeline.name, route.output) == ("tiny-hum", "audio")


STOPPED = """
import signal
import sys
from pathlib import Path
from app import commands
from app.cli import main
from app.settings import Settings
from app.studio import Studio
from pipelines.base import Registry
from tests.test_studio import Slow
class Announced(Slow):
    def run_batch(self, *arguments):
        print("running", flush=True)
        yield from super().run_batch(*arguments)
registry = Registry([Announced()])
# A runner that was started in the background hands on an ignored SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)
commands.Studio = lambda settings, _: Studio(settings, registry)
sys.exit(main(["generate", "x", "-o", "a.png"]))
"""


def test_ctrl_c_ends_with_130_and_leaves_nothing(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED], cwd=tmp_path, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout and process.stdout.readline() == "running\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (130, "Stopped.\n") and list(tmp_path.iterdir()) == []


def test_settings_reach_the_command(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Settings] = []

    def serve(settings: Settings, arguments: object) -> int:
        seen.append(settings)
        return 0

    monkeypatch.setattr(commands, "serve", serve)
    assert run("serve", "--host", "::1", "--port", "8000", "--output-folder", "there", "--profile", "full")[0] == 0
    assert (seen[0].host, seen[0].port, seen[0].output_folder, seen[0].profile) == ("::1", 8000, Path("there"), "full")


def test_nobody_reading_on_is_no_fault() -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "app", "pipelines", "crossflow"]
    result = subprocess.run(command, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (result.returncode, result.stderr) == (0, "")


BUILT = """
import sys
from app.settings import load_settings
from app.studio import Studio
from app.ui import build
build(Studio(load_settings(output_folder="gallery")))
print(*{"diffusers", "transformers", "accelerate", "bitsandbytes", "nilearn"} & set(sys.modules))
"""


def test_the_page_is_built_before_the_libraries_of_models_are_read(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", BUILT]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "\n"), result.stderr  # they cost ten seconds
