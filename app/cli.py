"""``python -m app``: serve the page, generate from a script, look at what there is.

Exit codes: 0 done, 1 a fault of ours or a failed check of ``doctor``, 2 something that you can put right (one sentence
says what), 130 stopped with Ctrl-C.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from app.settings import Settings, load_settings
from models.errors import UserError

OUT_HELP = """a file, whose ending says what to make (an existing one is replaced; several results become OUT-1.png,
OUT-2.png, ...), or a folder (results are named after the prompt and their content)"""
REQUESTS_HELP = """many requests: a line of JSON each, {"prompt": "...", "inputs": ["image", "fmri"]}, media types being
enough; a line of JSON comes out for each, in the same order"""
SET_HELP = """settings of the pipeline, NAME=VALUE; a value is read as JSON if it is JSON, else as text
(so the text 12 is written NAME='"12"')"""
PICTURES_HELP = """a folder of what was seen, each file numbered as the scans' 'image_id' says (42.png), or a .csv table
of numbers and files; for scans without 'image_id' a picture for each trial, in order"""
DECODER_HELP = """where the decoder goes with the new adapter in it; one that is there already gets it too"""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{message[:1].upper()}{message[1:]}. See: {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = vars(_parser().parse_args(argv))
    command = arguments.pop("command")
    overrides = {name: arguments.pop(name) for name in Settings.model_fields if name in arguments}
    logging.basicConfig(level=logging.ERROR, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for room in ("app", "pipelines", "models"):  # other people's libraries warn of what no user can change
        logging.getLogger(room).setLevel(logging.WARNING)
    try:
        settings = load_settings(**overrides)
        return _run(command, settings, argparse.Namespace(**arguments))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except BrokenPipeError:  # as with "| head": whoever read has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more as it ends
        return 0
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130


def _run(command: str, settings: Settings, arguments: argparse.Namespace) -> int:
    # torch takes seconds to import: not before the arguments are known to be right
    from app import brain_commands, commands, model_commands, plan_commands
    from app.studio import InternalError, reporting

    chosen: dict[str, Callable[[Settings, argparse.Namespace], int]] = {
        "serve": commands.serve,
        "generate": commands.generate,
        "plan": plan_commands.plan,
        "pipelines": commands.pipelines,
        "models": model_commands.models,
        "adapt-subject": brain_commands.adapt_subject,
        "doctor": commands.examine,
    }
    try:
        with reporting():
            return chosen[command](settings, arguments)
    except InternalError as error:
        print(error, file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m app", description="Pictures and more from words, on your own machine.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)

    serve = commands.add_parser("serve", help="open the page")
    every = list(Settings.model_fields)
    _add_settings(serve, every)

    generate = commands.add_parser("generate", help="make something from prompts and files")
    generate.add_argument("prompts", nargs="*", metavar="PROMPT", help="texts; some pipelines take two")
    generate.add_argument("--pipeline", metavar="NAME", help="by default chosen from the inputs and OUT's ending")
    generate.add_argument("--input", nargs="+", action="extend", default=[], metavar="FILE", help="files to start from")
    generate.add_argument("--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE", help=SET_HELP)
    generate.add_argument("--seed", type=int, metavar="N", help="same seed, same settings: same result")
    generate.add_argument("-o", "--out", metavar="OUT", help=OUT_HELP)
    generate.add_argument("--json", action="store_true", help="print a line of JSON with the provenance of each result")
    generate.add_argument("--help-params", action="store_true", help="list the settings of --pipeline, or of all")
    _add_settings(generate, ["profile", "device", "memory_budget_gb", "local_weights"])

    plan = commands.add_parser("plan", help="say what a request comes to, without running it")
    plan.add_argument("request", nargs="?", metavar="REQUEST", help="what is wanted, in plain words")
    plan.add_argument("--input", nargs="+", action="extend", default=[], metavar="FILE", help="attachments")
    plan.add_argument("--requests", metavar="FILE", help=REQUESTS_HELP)
    plan.add_argument("--json", action="store_true", help="print JSON; with --requests it is always JSON")
    _add_settings(plan, ["profile", "device", "memory_budget_gb", "local_weights"])

    pipelines = commands.add_parser("pipelines", help="list the pipelines and their settings")
    _add_settings(pipelines, ["profile"])
    pipelines.add_argument("names", nargs="*", metavar="NAME", help="only these")
    models = commands.add_parser("models", help="list, fetch, verify and free the models")
    _add_model_actions(models)
    adapt = commands.add_parser("adapt-subject", help="teach the brain decoder a new subject, from scans and pictures")
    adapt.add_argument("scans", nargs="+", metavar="SCANS", help="a file of at least 50 trials; with it, their mask")
    adapt.add_argument("--pictures", required=True, metavar="FOLDER", help=PICTURES_HELP)
    adapt.add_argument("--subject", required=True, metavar="NAME", help="whose scans they are")
    adapt.add_argument("-o", "--out", required=True, metavar="FOLDER", help=DECODER_HELP)
    adapt.add_argument("--json", action="store_true", help="print the learning curve as JSON")
    _add_settings(adapt, ["local_weights"])
    doctor = commands.add_parser("doctor", help="say what works on this machine, and why not")
    _add_settings(doctor, every)
    for listing in (pipelines, doctor):
        listing.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _add_model_actions(models: argparse.ArgumentParser) -> None:
    """``models`` alone lists; what may follow it may also follow its actions."""
    actions = models.add_subparsers(dest="action", metavar="ACTION", parser_class=_Parser)
    listing = actions.add_parser("list", help="sizes, licences, and what is on this machine; also without ACTION")
    fetch = actions.add_parser("fetch", help="bring models to this machine; a broken fetch goes on where it stopped")
    fetch.add_argument("keys", nargs="*", metavar="KEY", help="only these")
    fetch.add_argument("--accept-licence", action="store_true", help="also where the licence restricts use")
    verify = actions.add_parser("verify", help="hash the files again; code 2 if one is not what it was")
    verify.add_argument("keys", nargs="*", metavar="KEY", help="only these")
    free = actions.add_parser("free", help="make a running app drop models that nobody uses or waits for")
    free.add_argument("key", nargs="?", metavar="KEY", help="only this one")
    free.add_argument("--all", action="store_true", help="also those that waiting requests need")
    free.add_argument("--url", metavar="URL", help="the app's address; by default this machine, at the settings' port")
    models.add_argument("--json", action="store_true", help="print JSON")
    for action in (listing, fetch, verify, free):
        action.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")
    for parser in (models, listing, fetch, verify):
        _add_settings(parser, ["profile", "local_weights"])


def _add_settings(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """A flag a setting; no argument where it is not given. :class:`Settings` checks values as of the environment."""
    group = parser.add_argument_group("settings", "also read from the environment, SYNESTHETE_<NAME>, and from .env")
    for name in names:
        description = (Settings.model_fields[name].description or "").replace("%", "%%")
        group.add_argument(f"--{name.replace('_', '-')}", metavar="VALUE", default=argparse.SUPPRESS, help=description)
