"""Arguments that nobody gives on purpose: every verb, with every option that it declares, and values of every sort.

What options there are is read from the verbs themselves, so a new one is tried out, too. The outcome is success, or
status 2 with an error that says what to do; never another exception, never a file left behind by what failed, and
what is written as JSON is JSON.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from typer.models import ArgumentInfo, OptionInfo
from typer.testing import CliRunner

from unweave.cli import app


@dataclass(frozen=True)
class Parameter:
    """An option or an argument of a verb, as it is declared."""

    verb: str
    name: str
    flag: str | None
    kind: Any
    least: float | None
    most: float | None
    info: Any


def parameters(verb: str, function: Any) -> Iterator[Parameter]:
    for name, hint in get_type_hints(function, include_extras=True).items():
        info = next(
            (one for one in getattr(hint, "__metadata__", ()) if isinstance(one, OptionInfo | ArgumentInfo)), None
        )
        if info is None:
            continue
        kind = get_args(hint)[0]
        while get_origin(kind) not in (None, Literal):  # `list[str] | None` is of str
            kind = get_args(kind)[0]
        declared = [text for text in info.param_decls or () if text.startswith("-")]
        flag = None if isinstance(info, ArgumentInfo) else (declared or [f"--{name.replace('_', '-')}"])[0]
        yield Parameter(verb, name, flag, kind, info.min, info.max, info)


def verbs() -> dict[str, Any]:
    found = {command.callback.__name__: command.callback for command in app.registered_commands if command.callback}
    for group in app.registered_groups:
        for command in group.typer_instance.registered_commands:
            found[f"{group.name} {command.callback.__name__}"] = command.callback
    return found


VERBS = verbs()
PARAMETERS = [one for verb, function in VERBS.items() for one in parameters(verb, function)]
SPACE = ["--space", "pocket/clip"]
BASES: dict[str, list[str]] = {
    "demo": ["--model", "pocket/nope"],
    "explain": ["pocket/deit"],
    "decompose": ["pocket/deit", "pocket/world/0/2", "-o", "out", "--no-figure"],
    "extract": ["pocket/deit", "pocket/world/0/2", "-o", "out"],
    "store info": ["STORE"],
    "store verify": ["STORE", "--rows", "1"],
    "store export": ["STORE", "-o", "out.parquet", "--select", "kind:embed"],
    "align": ["STORE", *SPACE, "-o", "out", "--random-images", "0", "--rounds", "1", "--held-out", "0.2"],
    "score": ["STORE", *SPACE, "-o", "out", "--feature", "colour", "--samples", "20", "--no-figure"],
    "label": ["STORE", *SPACE, "-o", "out", "--no-figure"],
    "ablate": ["STORE", "-o", "out", "--by", "probe", "--order", "kind:embed", "--no-figure"],
    "search": ["STORE", *SPACE, "-o", "out", "--feature", "colour", "--text", "a red circle", "-k", "1", "--no-figure"],
    "debias": [
        "STORE",
        *SPACE,
        "--held-out",
        "STORE",
        "--test",
        "STORE",
        "-o",
        "out",
        "--draws",
        "1",
        "-k",
        "1",
        "--no-figure",
    ],
    "heatmap": ["pocket/deit", "pocket/world/0/1", "-o", "out", "--class", "0", "--no-figure"],
    "segment": ["pocket/deit", "pocket/world/0/1", "-o", "out", "--predicted", "--method", "rollout", "--no-figure"],
    "reproduce": ["segmentation", "-o", "out", "--data", "nowhere"],
    "models": [],
}
"""Of every verb a command that does little; what an option is tried out in, and replaces what is there."""

TEXTS = (
    "", " ", "nope", "x" * 5000, "=", "=x", "label=", "label=nope", "nope=x", "../..", "{}", "[/red]", "\N{SNOWMAN}",
    "\udcff", "*", "!", "!*", "last:0", "last:" + "9" * 5000, "last:²", "kind:", "0/0", "2/1", "9" * 5000, "-1", "nan",
    "pocket/", "pocket/world/0/0", "pocket/world/²/1", f"pocket/world/0/{10**12}", "timm/", "timm/nope", "hf/",
    "hf/nope", "open_clip/", "open_clip/nope/nope", "torchvision/nope", "score:", "score:nope", "file:///nope",
    "folder:", "hf:", ":", "a,b,c", ",", "/dev/null", "/dev/zero",
)  # fmt: skip
"""What an option of text, or a path, is tried out with."""

WRONG = {
    int: ("nan", "²", str(2**70)),
    float: ("nan", "inf", ""),
}
"""What no option of numbers takes."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = str(tmp_path_factory.mktemp("stores") / "birds")
    done = CliRunner().invoke(app, ["extract", "pocket/clip", "pocket/birds/0/train/40", "-o", place])
    assert done.exit_code == 0, done.output
    return place


@pytest.fixture
def tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str) -> Any:
    """Runs a verb, and holds what came of it to what has to come of anything."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("unweave.hub.reachable", lambda url: False)
    monkeypatch.setenv("UNWEAVE_CACHE", str(tmp_path.parent / "cache"))
    runner = CliRunner()

    def run(verb: str, arguments: list[str]) -> Any:
        before = set(tmp_path.rglob("*"))
        done = runner.invoke(app, [*verb.split(), *(store if text == "STORE" else text for text in arguments)])
        said = f"unweave {verb} {' '.join(map(repr, arguments))}"[:500]
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            done.exception.add_note(said)
            raise done.exception
        assert done.exit_code in (0, 2), (said, done.exit_code, done.output)
        left = set(tmp_path.rglob("*")) - before
        if done.exit_code == 2:
            assert "rror" in done.stderr and not done.stdout.strip(), (said, done.output)
            assert kept(arguments) or not left, (said, left)
        for path in left:
            assert not path.name.startswith("."), (said, path)
            if path.suffix == ".json":
                strictly(path.read_text())
        if "--json" in arguments and done.exit_code == 0:
            strictly(done.stdout)
        return done

    return run


def strictly(text: str) -> Any:
    """What JSON says, as its standard has it."""
    return json.loads(text, parse_constant=pytest.fail)


def kept(arguments: list[str]) -> bool:
    """Whether what was computed is kept, though something failed after it: an upload, or a table of many steps."""
    return "segmentation" in arguments or any(text.startswith("--push=") for text in arguments)


def command(parameter: Parameter, value: str) -> list[str]:
    """The command of a verb with a value in an option's place, or in an argument's."""
    base = list(BASES[parameter.verb])
    if parameter.flag is None:
        place = [one.name for one in PARAMETERS if one.verb == parameter.verb and one.flag is None].index(
            parameter.name
        )
        base[place : place + 1] = ["--", value] if value.startswith("-") else [value]
        return base
    names = {parameter.flag, *(text for text in parameter.info.param_decls or () if text.startswith("-"))}
    kept: list[str] = []
    while base:
        if base[0] in names:
            del base[:2]
        else:
            kept.append(base.pop(0))
    return [*kept, f"{parameter.flag}={value}"] if parameter.flag.startswith("--") else [*kept, parameter.flag, value]


def test_every_verb_is_tried_out() -> None:
    assert set(VERBS) == set(BASES) and len(PARAMETERS) > 150


SLOW = {"demo", "reproduce", "align", "label", "search", "segment", "heatmap", "debias", "ablate", "score"}
"""Verbs that other tests drive from end to end."""


@pytest.mark.parametrize("verb", [pytest.param(verb, marks=[pytest.mark.sweep] * (verb in SLOW)) for verb in BASES])
def test_the_commands_do_what_they_should(tried: Any, verb: str) -> None:
    asked = [*BASES[verb], "--json"]
    assert tried(verb, asked).exit_code == (2 if verb in ("demo", "reproduce") else 0)


def test_every_number_has_a_range() -> None:
    for one in PARAMETERS:
        if one.kind in (int, float):
            assert one.least is not None and one.most is not None, f"{one.verb} {one.flag} has no range"
            assert math.isfinite(one.least) and math.isfinite(one.most)


@pytest.mark.parametrize("verb", BASES)
def test_numbers_out_of_range_are_refused(tried: Any, verb: str) -> None:
    for one in PARAMETERS:
        if one.verb == verb and one.kind in WRONG:
            step = 1 if one.kind is int else 0.5
            for value in (*WRONG[one.kind], one.kind(one.least - step), one.kind(one.most + step)):
                done = tried(verb, command(one, str(value)))
                assert done.exit_code == 2, f"{verb} {one.flag} takes {value}"
        elif one.verb == verb and get_origin(one.kind) is Literal:
            assert tried(verb, command(one, "nope")).exit_code == 2


def attempts(seed: int, share: float = 1) -> Iterator[tuple[str, list[str]]]:
    """One attempt for each parameter that takes text, a path or a number: a value that may be taken or not.

    Args:
        seed: Of the values.
        share: Of the parameters; each has its turn at some seed.
    """
    rng = random.Random(seed)
    for one in PARAMETERS:
        if rng.random() >= share:
            continue
        if one.kind in (int, float) and one.name not in HEAVY:
            yield one.verb, command(one, str(rng.choice((one.least, one.most))))
        elif one.kind in (str, Path):
            yield one.verb, command(one, rng.choice(TEXTS))


HEAVY = ("samples", "draws", "workers", "wait", "epochs", "random_images", "rounds", "rows")
"""Numbers of what takes as long as one asks for."""


def test_whatever_is_given_something_is_said(tried: Any) -> None:
    for verb, arguments in attempts(0, share=0.15):
        if verb not in SLOW:
            tried(verb, arguments)


@pytest.mark.sweep
@pytest.mark.parametrize("seed", range(1, 100))
def test_whatever_is_given_very_often(tried: Any, seed: int) -> None:
    for verb, arguments in attempts(seed):
        tried(verb, [*arguments, "--json"])


@pytest.mark.parametrize("verb", ["score", "label", "search", "ablate", "store export"])
def test_a_value_that_no_image_has_is_named_beside_those_that_there_are(tried: Any, verb: str) -> None:
    done = tried(verb, [*BASES[verb], "--where", "location=mars"])
    assert done.exit_code == 2 and "No image has the location 'mars'" in done.stderr and "meadow" in done.stderr
    both = ["--where", "label=land", "--where", "label=water"]
    done = tried(verb, [*BASES[verb], *both])
    assert done.exit_code == 2 and "No image has label=land and label=water at once" in done.stderr


def test_fields_that_there_are_not_are_refused_before_anything_is_computed(tried: Any) -> None:
    done = tried("align", [*BASES["align"], "--classes", "nope"])
    assert done.exit_code == 2 and "no field 'nope'" in done.stderr and "label" in done.stderr


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    from unweave.cli.console import print_json

    print_json({"a": float("nan")})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {"a": None}
