"""The documents say what is there: their commands, links, tables, examples and versions."""

from __future__ import annotations

import ast
import base64
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pytest
import typer
import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from jobs import cli, options, settings
from jobs.doctor import MIN_DISK_BYTES, MIN_MAVEN, MIN_MEMORY_BYTES
from jobs.environment import JAVA_MAJOR, ROOT
from jobs.exit_codes import ExitCode
from model_server.errors import Reason
from model_server.metrics import ServerMetrics
from model_server.servables import Servables
from udfs.batches.events import Decoded, Decoder, IntArray
from udfs.definition.types import format_duration
from udfs.enrichment.lookups import LookupCounts
from udfs.features import aggregates
from udfs.features.keyed import KeyedStage

MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CHAPTERS = ("README.md", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("[a-z]*/*.md")))
DOCUMENTS = (
    *CHAPTERS,
    *(f"{n}.md" for n in ("CHANGELOG", "CONTRIBUTING", "SECURITY", "CODE_OF_CONDUCT")),
)
FRAUD, PAYMENTS = ROOT / "conf" / "fraud.yaml", ROOT / "conf" / "examples" / "payments.yaml"

_PLACEHOLDER = re.compile(r"_?<[a-z]+>(?:[_/]<[a-z]+>)*/?")
"""GitHub takes <name> for HTML and shows nothing: in the README it stands between backticks."""

REGENERATE = r"""
{ sed '/^<!-- settings -->$/q' conf/README.md
  .venv/bin/streamscore config show --reference | sed -E 's#_?<[a-z]+>([_/]<[a-z]+>)*/?#`&`#g'
  sed -n '/^<!-- \/settings -->$/,$p' conf/README.md
} > build/README.new && mv build/README.new conf/README.md
"""


class Block(NamedTuple):
    """A fenced code block, and the comment on the line before it."""

    comment: str
    language: str
    text: str


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


FRONT = text_of("README.md")
README = "\n".join(map(text_of, CHAPTERS))
"""The README and the chapters that lie with the code they tell of."""


def blocks(text: str, language: str) -> list[Block]:
    fenced = re.compile(r"(?:<!-- ([^\n]*) -->\n)?^ *```(\w+)\n(.*?)^ *```$", re.M | re.S)
    dedented = re.sub(r"^ {3}(?=<!-- |```)", "", text, flags=re.M)
    found = [Block(m[1] or "", m[2], m[3]) for m in fenced.finditer(dedented)]
    return [block for block in found if block.language == language]


def rows(heading: str) -> list[list[str]]:
    """The cells of the table whose first heading is this, backticks removed."""
    lines = README.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    found = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            return found
        found.append([cell.strip().strip("`") for cell in line.strip("|").split(" | ")])
    return found


# -- commands -----------------------------------------------------------------------------------


def shell_commands(text: str) -> Iterator[list[str]]:
    """The words of every command in the sh blocks: comments, paths and variables removed."""
    for block in blocks(text, "sh"):
        for line in block.text.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;")
            lexer.whitespace_split = True
            words: list[str] = []
            for word in [*lexer, ";"]:
                if set(word) <= set("&|;"):
                    if words:
                        yield words
                    words = []
                elif words or not re.match(r"[A-Z_]+=", word):
                    words.append(word if words else word.removeprefix(".venv/bin/"))


COMMANDS = [words for name in DOCUMENTS for words in shell_commands(text_of(name))]
INLINE = sorted(
    {span for name in DOCUMENTS for span in re.findall(r"`([^`\n]+)`", text_of(name))}
    - {"streamscore"}
)


def of(program: str) -> list[list[str]]:
    found = [words[1:] for words in COMMANDS if words[0] == program]
    assert found, f"no {program} command"
    return found


def resolve(words: list[str]) -> tuple[Any, list[str]]:
    """The command that the first words name, and the rest."""
    command = typer.main.get_command(cli.app)
    while words and hasattr(command, "commands"):
        assert words[0] in command.commands, f"there is no command {words[0]!r}"
        command, words = command.commands[words[0]], words[1:]
    return command, words


@pytest.mark.parametrize("words", of("streamscore"), ids=" ".join)
def test_streamscore_takes_the_command(words: list[str]) -> None:
    command, rest = resolve(words)
    context = command.make_context(command.name, rest)  # raises what a user would see
    for change in context.params.get("overrides") or ():
        name, value = options.change(change)
        settings.load(FRAUD, {name: value})
    for name in ("conf", "config"):
        assert (ROOT / context.params.get(name, FRAUD)).is_file()


@pytest.mark.parametrize("span", [s for s in INLINE if s.startswith("streamscore ")])
def test_a_command_in_the_text_exists(span: str) -> None:
    command, rest = resolve(shlex.split(span)[1:])
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in rest if word.startswith("--")} <= known


@pytest.mark.parametrize(
    "words",
    [*of("make"), *(shlex.split(s)[1:] for s in INLINE if s.startswith("make "))],
    ids=" ".join,
)
def test_make_has_the_target_and_its_variables(words: list[str]) -> None:
    for word in words:
        name, equals, value = word.partition("=")
        wanted = rf"^{name} \?=" if equals else rf"^{name}:"
        assert re.search(wanted, MAKEFILE, re.M), f"the Makefile has no {name}"
        if name == "EXTRA":
            assert f"/extra-{value}:" in MAKEFILE


def test_demo_arguments_are_the_demo_s() -> None:
    arguments = re.findall(r'make (demo[a-z-]*) DEMO_ARGS="([^"]*)"', README)
    assert {name for name, _ in arguments} == {"demo", "demo-iot"}
    for name, text in arguments:
        command, rest = resolve([name, *shlex.split(text)])
        command.make_context(name, rest)


def test_bench_arguments_are_those_of_both_benchmarks() -> None:
    common = pytest.importorskip("bench.common")
    import argparse

    parser = argparse.ArgumentParser()
    common.add_common_options(parser.add_argument)
    for text in re.findall(r'BENCH_ARGS="([^"]*)"', README):
        parser.parse_args(shlex.split(text))


# -- links --------------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """GitHub's anchors of the headings, those in code blocks left out."""
    prose = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", prose, re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_relative_link_leads_somewhere(name: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", text_of(name)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        assert not path.startswith("/")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), f"{name}: {link}"
        if anchor:
            assert anchor in anchors(target.read_text("utf-8")), f"{name}: no heading for {link}"


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:\w+/)+[\w.-]+\.\w+)`", README))))
def test_every_named_file_exists(path: str) -> None:
    assert path.startswith("build/") or (ROOT / path).is_file()


def test_every_named_folder_exists() -> None:
    for folder, *_ in rows("folder"):
        assert (ROOT / folder).is_dir()


# -- tables -------------------------------------------------------------------------------------


def test_the_settings_reference_is_the_code_s() -> None:
    match = re.search(r"<!-- settings -->\n(.*)<!-- /settings -->", README, re.S)
    assert match
    expected = _PLACEHOLDER.sub(r"`\g<0>`", settings.reference())
    if match[1] != expected:
        pytest.fail(f"the settings have changed; in the project's folder run:{REGENERATE}")


def test_the_table_of_aggregates_is_the_code_s() -> None:
    match = re.search(r"<!-- aggregates -->\n(.*)<!-- /aggregates -->", README, re.S)
    assert match
    assert match[1] == aggregates.markdown()


def test_the_exit_codes() -> None:
    code_rows = [cells[:2] for cells in rows("exit code")]
    assert [(row[0], row[1].replace("`", "")) for row in code_rows] == [
        (str(code.value), code.meaning.replace("`", "")) for code in ExitCode
    ]


def calls(*files: str) -> Iterator[tuple[str, list[object]]]:
    """The name of everything called in these files, with its literal arguments in order."""
    for file in files:
        for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                yield name, [a.value for a in node.args if isinstance(a, ast.Constant)]


def test_the_error_codes_are_complete() -> None:
    made = calls(
        *(f"udfs/{n}.py" for n in ("batches/events", "batches/routing", "rollup/operator"))
    )
    codes = {args[0] for name, args in made if name in ("EventError", "refused") and args}
    assert {cells[0] for cells in rows("error code")} == codes


def test_the_fallback_reasons_are_complete() -> None:
    assert {cells[0] for cells in rows("fallback reason")} == set(get_args(Reason))


def test_the_metrics_are_complete() -> None:
    operators = ["stages/base", "stages/first", "stages/next", "stages/labels", "rollup/operator"]
    operators += ["scoring/served", "alerting/operator", "overload/valve"]
    made = calls(*(f"udfs/{name}.py" for name in operators))
    kinds = {(args[0], name) for name, args in made if name in ("counter", "gauge") and args}
    assert {(cells[0], cells[1]) for cells in rows("metric")} == kinds


def test_the_lookup_metrics_are_complete() -> None:
    expected = {f"lookup_{field.name}" for field in fields(LookupCounts)}
    assert {cells[0] for cells in rows("look-up metric")} == expected


def test_the_servers_metrics_are_complete() -> None:
    registry = ServerMetrics(Servables()).registry
    names = {family.name for family in registry.collect()}
    shown = {cells[0] for cells in rows("server metric")}
    assert {name for name in names if not name.startswith("process_")} == shown


def test_the_memory_of_the_fraud_job() -> None:
    schema = settings.load(FRAUD).schema_
    expected = []
    for key in schema.stages:
        stage = KeyedStage(schema, key)
        streams = {"events": stage._events, "labels": stage._labels}
        for stream, plan in streams.items():
            if plan.columns:
                size = str(8 * plan.kept_words)
                expected.append([f"{key}` {stream}", size, format_duration(plan.plan.horizon_ms)])
    assert rows("stage and stream") == expected


def test_the_versions_are_the_pinned_ones() -> None:
    poms = "".join((ROOT / "conf" / name).read_text() for name in ("pom.xml", "kafka-pom.xml"))
    artifacts = r"<artifactId>([^<]+)</artifactId>\s*<version>([^<]+)</version>"
    pins = dict(re.findall(artifacts, poms))
    pins |= dict(d.split("==") for d in PROJECT["project"]["dependencies"] if "==" in d)
    pins |= {"Java": str(JAVA_MAJOR), "Python": PROJECT["project"]["requires-python"][2:6]}
    for named, file in rows("version"):
        name, version = named.split()
        assert pins[name] == version
        assert name in (ROOT / file).read_text(encoding="utf-8") or name == "Java"
    assert f"flink-python-{pins['apache-flink']}.jar" in README


def test_the_needs_are_the_doctor_s() -> None:
    needs = FRONT[: FRONT.index("## The pipeline")]
    gib = 1024**3
    assert f"Maven {'.'.join(map(str, MIN_MAVEN))}" in needs
    assert f"{MIN_MEMORY_BYTES // gib} GiB of free memory" in needs
    assert f"{MIN_DISK_BYTES // gib} GiB of disk" in needs


def test_the_changelog_has_the_version() -> None:
    assert f"## [{PROJECT['project']['version']}]" in text_of("CHANGELOG.md")


def test_every_figure_has_a_place_of_its_own() -> None:
    names = re.findall(r"<!-- bench:(\w+) -->[^<>\n]+<!-- /bench -->", README)
    assert names and len(names) == len(set(names))
    assert len(names) == README.count("<!-- bench:") == README.count("<!-- /bench -->")


# -- examples -----------------------------------------------------------------------------------


def example(comment: str) -> Any:
    return next(
        json.loads(block.text) for block in blocks(README, "json") if block.comment == comment
    )


def validator(name: str) -> Draft202012Validator:
    schemas = [json.loads(p.read_text()) for p in (ROOT / "conf" / "schemas").glob("*.json")]
    registry = Registry().with_resources((s["$id"], Resource.from_contents(s)) for s in schemas)
    wanted = next(s for s in schemas if s["$id"] == f"urn:streamscore:{name}:1")
    return Draft202012Validator(wanted, registry=registry)


OUTPUTS = [b.comment.removeprefix("schema: ") for b in blocks(README, "json") if "schema" in b[0]]


def test_every_kind_of_output_has_an_example() -> None:
    schemas = {path.stem for path in (ROOT / "conf" / "schemas").glob("*.json")}
    assert sorted(OUTPUTS) == sorted(schemas)


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_example_fits_its_schema(name: str) -> None:
    validator(name).validate(example(f"schema: {name}"))


def decode(conf: Path, raw: bytes) -> Decoded:
    import numpy as np

    schema = settings.load(conf).schema_
    positions: IntArray = np.array([[0, 0, 4_000_000_000_000]], np.int64)
    return Decoder.for_events(schema.event, schema.stages).decode([raw], positions)


def test_the_examples_are_of_the_fraud_job() -> None:
    alert, columns = example("schema: alert"), settings.load(FRAUD).schema_.columns
    assert alert["prediction"] == example("schema: prediction")
    assert set(alert["prediction"]["features"]) <= set(columns)
    assert {reason["feature"] for reason in alert["reasons"]} <= set(columns)
    assert decode(FRAUD, json.dumps(alert["event"]).encode()).parts


def test_the_dead_letter_is_one() -> None:
    letter = example("schema: dead_letter")
    (reject,) = decode(FRAUD, base64.b64decode(letter["raw_base64"])).rejects
    assert (reject.code, reject.message) == (letter["code"], letter["message"])


def test_the_enrichment_is_settings() -> None:
    (block,) = (b for b in blocks(README, "yaml") if b.comment == "settings: enrichment")
    loaded = settings.load(FRAUD, yaml.safe_load(block.text))
    columns = ("profile_chargebacks", "profile_limit", "account_age_days")
    assert loaded.schema_.lookup_columns == columns
    assert [f.name for t in loaded.tables for f in t.event_fields] == [
        "terminal_risk",
        "terminal_kind",
    ]


@pytest.mark.parametrize("name", ["alerts", "delivery", "store"])
def test_what_the_chapter_on_alerts_shows_is_settings(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for secret in ("WEBHOOK_TOKEN", "PGPASSWORD"):
        monkeypatch.setenv(secret, "s")
    (block,) = (b for b in blocks(README, "yaml") if b.comment == f"settings: {name}")
    loaded = settings.load(FRAUD, yaml.safe_load(block.text))
    assert loaded.alerts.episodes or loaded.delivery or loaded.store


def test_the_payment_is_an_event() -> None:
    payment = example("event: payments")
    assert decode(PAYMENTS, json.dumps(payment).encode()).parts
    fields = {field.name for field in settings.load(PAYMENTS).event.fields}
    assert set(payment) == fields
