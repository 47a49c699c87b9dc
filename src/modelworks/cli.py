"""The commands: one thin function a verb, heavy imports inside the function, errors as one sentence."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .base.errors import ModelworksError, UserError

SHARED = ("run", "train")  # what several processes do together
# What a stage's verb takes by position; all its other settings are options of the same name.
STAGES = {
    "collect": ("from*", "documents from sources (pydoc:stdlib, files:DIR) into a corpus"),
    "prepare": ("from", "clean, split and cut a corpus: --steps extract normalise quality dedup pii split"),
    "tokenizer": ("from", "learn a tokenizer from a corpus and encode it"),
    "train": ("objective", "train a model: causal_lm, chat, dpo, adversarial"),
    "evaluate": ("model", "score a model, with intervals and baselines beside it"),
    "attack": ("model", "attack a model and score it before and after"),
    "export": ("model", "a model to hand over, checked by running it: --to hf, gguf or onnx"),
}


def main(arguments: list[str] | None = None) -> None:
    """Entry of the `modelworks` command. Exits with 0, 1 (a failure), 2 (a user's mistake), 130 or 143 (a signal)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    parser = _parser()
    typed, command = [a for a in arguments if a != "--debug"], []
    if typed[:1] == ["launch"] and "--" in typed:
        typed, command = typed[: typed.index("--")], typed[typed.index("--") + 1 :]
    options, rest = parser.parse_known_args(typed)
    options.command = command
    if rest and options.verb not in (*STAGES, "launch"):
        parser.error(f"'{rest[0]}' is not an option of {options.verb}; see modelworks {options.verb} --help.")
    options.arguments = arguments
    try:
        _as_a_rank(options, rest) if _is_a_rank() else options.run(options, rest)
    except ModelworksError as error:
        if debug:
            raise
        if not error.told:
            print(f"modelworks: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        print("modelworks: stopped; the same command goes on from here.", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if debug:
            raise
        print(
            f"modelworks: {error.filename or 'the system'}: {error.strerror}; check it and try again.", file=sys.stderr
        )
        sys.exit(1)


def _is_a_rank() -> bool:
    """True when torchrun, or whatever else starts several processes for one run, started this one."""
    return int(os.environ.get("WORLD_SIZE") or 1) > 1 and "RANK" in os.environ


def _as_a_rank(options: argparse.Namespace, rest: list[str]) -> None:
    """One of several processes with the same command: all train, the first alone does whatever else there is."""
    from .train import cluster

    if options.verb not in SHARED:
        if os.environ["RANK"] == "0":
            options.run(options, rest)
        return
    options.devices, options.cluster = 1, None
    try:
        with cluster.joined():
            options.run(options, rest)
    except RuntimeError as error:
        if not cluster.lost(error):
            raise
        print(f"modelworks: rank {os.environ['RANK']} lost another rank or the network.", file=sys.stderr)
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="modelworks", description="Raw data in, working model out.")
    parser.add_argument("--version", action="version", version=f"modelworks {_version()}")
    parser.add_argument("--debug", action="store_true", help="show where an error came from")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND")

    def verb(name: str, run: Callable[..., None], help: str) -> argparse.ArgumentParser:
        about = help[0].upper() + help[1:] + "."
        command = verbs.add_parser(name, help=help, description=about, allow_abbrev=False)
        command.set_defaults(run=run)
        return command

    recipe = verb("run", _run, "run a recipe: only what changed is done, a killed run goes on")
    recipe.add_argument("recipe", help="a shipped name (modelworks ls recipes) or a YAML file")
    recipe.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="stages.base.budget.tokens=200k"
    )
    recipe.add_argument("--from", dest="first", metavar="STAGE", help="redo from this stage on")
    recipe.add_argument("--until", dest="last", metavar="STAGE", help="stop after this stage")
    recipe.add_argument("--out", metavar="DIR", help="where the artefacts go (default runs/<recipe>)")
    _device_options(recipe)
    job = verb("launch", _launch, "a job file for a cluster's scheduler, which starts run or train on many machines")
    job.add_argument("--print", dest="kind", required=True, metavar="KIND", help="slurm or kubernetes")
    job.usage = "modelworks launch --print KIND [--nodes N --devices N --name value ...] -- run RECIPE | train ..."
    for name, (place, help) in STAGES.items():
        command = verb(name, _stage, help)
        command.add_argument("place", nargs="+" if place.endswith("*") else 1, metavar=place.rstrip("*").upper())
        command.add_argument("--out", required=name != "train", metavar="DIR", help="where the artefact goes")
        command.add_argument("--seed", type=int, default=1)
        if name in ("evaluate", "attack"):
            command.add_argument("--gate", metavar="YAML", help="thresholds; exit status 1 where one is not held")
        if name in SHARED:
            _device_options(command)
        if name == "train":
            command.add_argument(
                "--replay", type=int, metavar="STEP", help="take a past step of DIR again: --replay 9 DIR"
            )
        command.epilog = f"Settings as --name value: modelworks schema {name} lists them."
    speak = verb("generate", _generate, "continue a text, answer or translate it, write down what a WAV file says")
    speak.add_argument("model")
    speak.add_argument("prompt", help="a text, or for a speech model a sound's path")
    speak.add_argument("--image", action="append", metavar="FILE", help="for a model that sees: stands at <image>")
    talk = verb("chat", _chat, "talk to a model or an assistant in the terminal")
    talk.add_argument("model")
    talk.add_argument("question", nargs="?", help="ask this and end (default: a conversation)")
    for command in (speak, talk):
        command.add_argument(
            "--set", action="append", default=[], metavar="KEY=VALUE", help="temperature=0.7 top_p=0.9"
        )
    door = verb("serve", _serve, "an OpenAI-compatible API and a chat page")
    door.add_argument("model", nargs="+", help="model directories")
    door.add_argument("--host", default="127.0.0.1")
    door.add_argument("--port", type=int, default=8000)
    _plan_options(verb("plan", _plan, "what a model costs before anything runs: memory, time, money, the best layout"))
    listing = verb("ls", _ls, "what the folders hold: objectives, presets, families, suites, attacks, sources, recipes")
    listing.add_argument("kind", nargs="?")
    data = verb("data", _data, "the data at hand: list, show NAME, get NAME")
    data.add_argument("action", choices=["list", "show", "get"])
    data.add_argument("name", nargs="?")
    data.add_argument("--out", default=None, metavar="DIR")
    health = verb("doctor", _doctor, "what this machine has and what is missing")
    form = verb("schema", _schema, "the JSON schema of recipes, or of one verb's settings")
    form.add_argument("verb_name", nargs="?", metavar="VERB")
    for command in (listing, data, health):
        command.add_argument("--json", action="store_true", help="for programs")
    return parser


def _device_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--devices", type=int, default=1, metavar="N", help="devices of this machine to train on (default 1)"
    )
    command.add_argument("--cluster", metavar="ADDRESS", help="a Ray cluster to train on: HOST:PORT, auto or local")


def _plan_options(command: argparse.ArgumentParser) -> None:
    """Training is planned, or fine-tuning (--adapter), generating (--batch, --context, --quant), a budget, a law."""
    command.add_argument("preset", nargs="?", help="modelworks ls presets lists them")
    command.add_argument("--json", action="store_true", help="for programs")
    where = command.add_argument_group("where")
    where.add_argument("--gpu", default="cpu", metavar="NAME", help="h100, a100, ... (default cpu: this machine)")
    where.add_argument("--gpus", type=int, default=1, metavar="N")
    where.add_argument("--price", type=float, metavar="DOLLARS", help="an hour of one device")
    train = command.add_argument_group("training")
    train.add_argument("--tokens", help="training budget, for instance 300B (default 20 a parameter)")
    train.add_argument("--max-len", type=int, metavar="TOKENS", help="row length")
    train.add_argument("--rows", type=int, help="rows at once (cpu: 16; on GPUs the layout decides)")
    train.add_argument("--batch-tokens", metavar="TOKENS", help="tokens in a step on GPUs (default by size)")
    train.add_argument("--dtype", help="cpu: float32 or bfloat16 (default the faster)")
    train.add_argument("--scale", action="store_true", help="on 8 to --gpus devices (default 4096), plots to --out")
    tune = command.add_argument_group("fine-tuning")
    tune.add_argument("--adapter", help="lora or qlora")
    tune.add_argument("--rank", type=int, default=16)
    generate = command.add_argument_group("generating")
    generate.add_argument("--batch", type=int, metavar="TEXTS")
    generate.add_argument("--context", type=int, metavar="TOKENS")
    generate.add_argument("--quant", help="none, fp8, int8, int4 or nf4")
    best = command.add_argument_group("the best size for a budget (no preset)")
    best.add_argument("--budget", metavar="FLOPS", help="for instance 1e21")
    best.add_argument("--days", type=float, help="of --gpus devices, in place of --budget")
    law = command.add_argument_group("a scaling law from your own runs (no preset)")
    law.add_argument("--fit", nargs="+", default=[], metavar="RUN", help="folders of train stages")
    law.add_argument("--out", metavar="DIR", help="where law.json and the plots go")


def _version() -> str:
    from . import __version__

    return __version__


def _run(options: argparse.Namespace, rest: list[str]) -> None:
    if options.devices != 1 or options.cluster:
        from .recipes import launching

        stages = launching.of_recipe(options.recipe, options.set)
        sys.exit(launching.start(options.arguments, options.devices, options.cluster, stages))
    from .recipes import front, summary

    runner = front.run(options.recipe, options.set, out=options.out, first=options.first, last=options.last)
    if os.environ.get("RANK", "0") == "0":
        summary.show(runner)


def _stage(options: argparse.Namespace, rest: list[str]) -> None:
    from .recipes import by_hand

    if getattr(options, "replay", None) is not None:
        from .recipes import replaying

        replaying.show(Path(options.place[0]), options.replay)
        return
    if options.out is None:
        raise UserError("train: name the folder for the model with --out DIR.")
    place = STAGES[options.verb][0]
    given: Any = options.place if place.endswith("*") else options.place[0]
    settings = {place.rstrip("*"): given, **_options(rest)}
    if options.verb in SHARED and (options.devices != 1 or options.cluster):
        from .recipes import launching

        stages = launching.of_command(options.verb, settings)
        sys.exit(launching.start(options.arguments, options.devices, options.cluster, stages))
    by_hand.do(options.verb, settings, Path(options.out), options.seed)
    if getattr(options, "gate", None):
        by_hand.gate(Path(options.out), Path(options.gate))


def _launch(options: argparse.Namespace, rest: list[str]) -> None:
    from .recipes import launching

    if not options.command or options.command[0] not in SHARED:
        raise UserError(
            "launch: write the command behind --, and let it be run or train: launch --print slurm -- run lm"
        )
    inner, more = _parser().parse_known_args(options.command)
    if inner.verb == "run":
        stages = launching.of_recipe(inner.recipe, inner.set)
    else:
        stages = launching.of_command("train", {"objective": inner.place[0], **_options(more)}, here=False)
    print(launching.job(options.kind, _options(rest), options.command, stages), end="")


def _options(rest: list[str]) -> dict[str, Any]:
    """`--name value ...` as settings; a value is YAML, several make a list, none is true, `--a.b` goes deeper."""
    import yaml

    found: dict[str, list[str]] = {}
    key = ""
    for word in rest:
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            key = name.replace("-", "_")
            found[key] = [value] if equals else []
        elif key:
            found[key].append(word)
        else:
            raise UserError(f"'{word}' stands where an option was expected; write --name {word}.")
    settings: dict[str, Any] = {}
    for name, words in found.items():
        try:
            values = [yaml.safe_load(word) for word in words]
        except yaml.YAMLError:
            values = list(words)
        *parents, last = name.split(".")
        place = settings
        for part in parents:
            place = place.setdefault(part, {})
        place[last] = True if not values else values[0] if len(values) == 1 else values
    return settings


def _sampling(assignments: list[str]) -> dict[str, Any]:
    from .base.config import override

    return override({}, assignments)


def _generate(options: argparse.Namespace, rest: list[str]) -> None:
    from .recipes import front

    model = front.load(options.model)
    seen = {"images": options.image} if options.image else {}
    for piece in model.stream(options.prompt, **seen, **_sampling(options.set)):
        print(piece, end="", flush=True)
    print()


def _chat(options: argparse.Namespace, rest: list[str]) -> None:
    from .recipes import front, talk

    talk.talk(front.speaker(options.model), options.question, _sampling(options.set))


def _serve(options: argparse.Namespace, rest: list[str]) -> None:
    from .recipes import front, opening
    from .serve import app

    models = opening.together(options.model, front.speaker)
    app.serve(models, host=options.host, port=options.port)


def _plan(options: argparse.Namespace, rest: list[str]) -> None:
    from .recipes.planning import command, present

    given = {name: value for name, value in vars(options).items() if name in command.Options.__slots__}
    made = command.plan(command.Options(**given | {"fit": tuple(options.fit)}))
    if options.json:
        _print(made, True)
    else:
        print(present.text(made))


def _ls(options: argparse.Namespace, rest: list[str]) -> None:
    from .recipes import listing

    _print(listing.listing(options.kind), options.json)


def _data(options: argparse.Namespace, rest: list[str]) -> None:
    from .recipes import listing

    _print(listing.data(options.action, options.name, options.out), options.json)


def _doctor(options: argparse.Namespace, rest: list[str]) -> None:
    from .recipes import doctor

    _print(doctor.examine(), options.json)


def _schema(options: argparse.Namespace, rest: list[str]) -> None:
    from .recipes import schema

    _print(schema.json_schema(options.verb_name), True)


def _print(value: Any, as_json: bool) -> None:
    """Results on stdout: JSON, or a list of rows as a table."""
    import json

    if as_json:
        print(json.dumps(value, indent=2, ensure_ascii=False, default=str))
        return
    rows = value if isinstance(value, list) else [{"what": k, "value": v} for k, v in value.items()]
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    names = list(dict.fromkeys(name for row in rows for name in row))
    for name in names:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row.get(name, "")) for name in names))
    Console(soft_wrap=not sys.stdout.isatty()).print(table)


def _cell(value: Any) -> str:
    from rich.markup import escape

    return escape(f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value))


if __name__ == "__main__":
    main()
