import json
import pickle
import random
import traceback
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from engine.errors import SpecError
from engine.spec import PipelineSpec
from engine.specfile import load_spec, parse_spec

GOOD = """\
pipeline: cards
workspace: ${ROOM:-here}/cards
source:
  uri: postgresql://u:${PASSWORD:-}@h/db
  table: t
  key: id
  cursor: updated_at
event_time: at
labels:
  table: l
  key: id
  value: fraud
  labelled_at: labelled_at
  absent: negative
features:
  numeric: [amount, age]
  windows:
    - {over: labels, keys: [card], lengths: [3h, 7d], statistics: [rate]}
    - {over: events, keys: [card], lengths: [1h], statistics: [mean], column: amount}
learner:
  parameters: {num_trees: 200, learning_rate: 0.05}
gate: {floors: {lift: 1.5}}
resources: {memory: 512MiB, threads: 2}
"""


def _spec(text: str, **environ: str) -> PipelineSpec:
    return parse_spec(text, name="x.yaml", environ=environ)


def _changed(old: str, new: str) -> str:
    assert GOOD.count(old) == 1
    return GOOD.replace(old, new)


def _error(text: str, **environ: str) -> SpecError:
    with pytest.raises(SpecError) as caught:
        _spec(text, **environ)
    return caught.value


def _refusal(text: str) -> SpecError | None:
    try:
        _spec(text)
    except SpecError as error:
        return error
    return None


def _everything(error: SpecError) -> str:
    """All that a log, a report or a traceback could show of an error."""
    return "\n".join((repr(error), json.dumps(error.to_json()), *traceback.format_exception(error), repr(vars(error))))


def _problems(text: str, **environ: str) -> list[tuple[int, str]]:
    return [(item["line"], item["path"]) for item in _error(text, **environ).details["problems"]]


def test_the_example_pipeline_is_valid_without_any_environment():
    spec = load_spec(Path(__file__).parents[2] / "pipelines" / "flights.yaml", environ={})
    assert spec.resources.memory == 512 * 2**20
    assert spec.workspace == ".headrace/flights"
    assert spec.source.uri.get_secret_value() == "sqlite:///.headrace/operations.db"
    assert len(spec.features.window_names()) == 30


def test_a_file_reads_as_the_same_values_without_this_reader():
    assert _spec(GOOD) == PipelineSpec.model_validate(
        yaml.safe_load(GOOD.replace("${ROOM:-here}", "here").replace("${PASSWORD:-}", ""))
    )


class TestVariables:
    def test_come_from_the_environment_and_else_from_their_default(self):
        assert _spec(GOOD).workspace == "here/cards"
        assert _spec(GOOD, ROOM="").workspace == "here/cards"
        spec = _spec(GOOD, ROOM="/mnt/big", PASSWORD="hunter2")
        assert spec.workspace == "/mnt/big/cards"
        assert spec.source.uri.get_secret_value() == "postgresql://u:hunter2@h/db"

    def test_without_value_and_default_are_named_with_their_line(self):
        error = _error(_changed("${ROOM:-here}", "${ROOM}"))
        assert error.details["problems"] == [
            {
                "path": "workspace",
                "line": 2,
                "message": "the environment variable ROOM is not set; set it, or write ${ROOM:-default}",
                "nearest": None,
            }
        ]

    def test_that_are_unset_are_not_reported_a_second_time_as_a_wrong_value(self):
        assert _problems(_changed("512MiB", '"${MEMORY}"')) == [(23, "resources.memory")]

    def test_are_typed_by_the_schema_and_where_that_is_open_as_yaml_would(self):
        text = _changed("num_trees: 200, learning_rate: 0.05", "a: '${N}', b: 'x${N}', c: '${R}', d: ['${B}']").replace(
            "threads: 2", "threads: '${N}'"
        )
        spec = _spec(text, N="7", R="1e-3", B="true")
        assert spec.resources.threads == 7
        assert spec.learner.parameters == {"a": 7, "b": "x7", "c": 0.001, "d": [True]}

    def test_are_put_in_once_and_cannot_add_yaml(self):
        assert _spec(GOOD, ROOM="${HOME}: [a, b]\nx: $$").workspace == "${HOME}: [a, b]\nx: $$/cards"

    def test_two_dollars_are_one_and_one_is_itself(self):
        assert _spec(_changed("${ROOM:-here}", "a$$b$c$${ROOM}")).workspace == "a$b$c${ROOM}/cards"

    @pytest.mark.parametrize("wrong", ["${ROOM", "${1ROOM}", "${ROOM-here}", "${}"])
    def test_that_are_not_well_formed_are_refused(self, wrong):
        error = _error(_changed("${ROOM:-here}", f'"{wrong}"').replace("/cards", ""))
        assert "${NAME:-default}" in error.message
        assert error.message.startswith("x.yaml:2: workspace: ")


class TestSecrets:
    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("512MiB", "'${SECRET}'"),
            ("512MiB", "'x ${SECRET} y'"),
            ("threads: 2", "threads: '${SECRET}'"),
            ("lift: 1.5", "lift: '${SECRET}'"),
            ("absent: negative", "absent: ${SECRET}"),
            ("pipeline: cards", "pipeline: a b ${SECRET}"),
            ("[3h, 7d]", "[3h, '${SECRET}']"),
            ("numeric: [amount, age]", "numeric: [amount, '${SECRET}', '${SECRET}']"),
            ("numeric: [amount, age]", "numeric: ${SECRET}"),
            ("gate: {floors", "gatee: {x: '${SECRET}'}\ngate: {floors"),
            ("  key: id\n  value", "  value"),
            ("resources: {", "resources: {{"),
        ],
    )
    @pytest.mark.parametrize("secret", ["hunter2-and-more", 'it\'s \\ "quoted"\nhunter2'])
    def test_no_error_shows_a_value_from_the_environment(self, old, new, secret):
        text = GOOD.replace(old, new).replace("  uri: postgresql://u:${PASSWORD:-}@h/db", "  uri: 'x://${SECRET}@h'")
        assert "hunter2" not in _everything(_error(text, SECRET=secret))

    def test_no_error_shows_a_uri_that_the_file_spells_out(self):
        for new in ("hunter2://x\n  urii: hunter2://x", "hunter2://x\n\tbad", "[hunter2]", "hunter2://x: y"):
            assert "hunter2" not in _everything(_error(_changed("postgresql://u:${PASSWORD:-}@h/db", new)))

    def test_a_value_is_shown_as_the_file_writes_it(self):
        message = _error(_changed("512MiB", "'${MEMORY}'"), MEMORY="half").message
        assert message == (
            "x.yaml:23: resources.memory: '${MEMORY}' is not a size; write for example 512MiB, 2GiB or 1048576"
        )

    def test_a_near_miss_from_the_environment_is_not_guessed(self):
        assert _error(_changed("negative", "${ABSENT}"), ABSENT="negativ").details["problems"][0]["nearest"] is None

    @given(st.text(min_size=4, max_size=12))
    @example("x.yaml")
    def test_whatever_the_value_is_the_problem_is_still_placed(self, secret):
        error = _error(_changed("512MiB", "'${SECRET} MiBs'"), SECRET=secret)
        assert [item["path"] for item in error.details["problems"]] == ["resources.memory"]
        assert f"'{secret}" not in error.message


class TestProblems:
    def test_are_all_in_one_error_in_the_order_of_the_file(self):
        text = (
            GOOD.replace("table: t\n", "tabel: t\n")
            .replace("absent: negative", "absent: negatve")
            .replace("[3h, 7d]", "[3h, 7]")
            .replace("lift: 1.5", "lfit: 1.5")
            .replace("512MiB, threads: 2", "-1, threads: many")
            .replace("event_time: at\n", "")
        )
        error = _error(text)
        assert error.message.splitlines() == [
            "x.yaml:1: event_time: the key is missing: when the thing that is predicted happens",
            "x.yaml:3: source.table: the key is missing: table or view; schema.table where the database has schemas",
            "x.yaml:5: source.tabel: unknown key; allowed: format, csv, types, lag, uri, table, key, cursor, "
            "on_conflict, max_row_bytes, max_quarantine_share, allow; "
            "did you mean 'table'?",
            "x.yaml:13: labels.absent: not a known value; allowed: negative, unknown; did you mean 'negative'?",
            "x.yaml:17: features.windows[0].lengths[1]: '7' is not a duration; "
            "write for example 30s, 15m, 3h, 7d or 1h30m",
            "x.yaml:21: gate.floors.lfit: unknown key; allowed: average_precision, roc_auc, precision, recall, f1, "
            "lift; did you mean 'lift'?",
            "x.yaml:22: resources.memory: it should be greater than 0",
            "x.yaml:22: resources.threads: this is text; allowed: a whole number",
        ]
        assert [item["nearest"] for item in error.details["problems"]] == [
            None, None, "table", "negative", None, "lift", None, None,
        ]  # fmt: skip
        assert error.details["file"] == "x.yaml"
        assert error.exit_code == 2

    @pytest.mark.parametrize(
        ("old", "new", "says"),
        [
            ("numeric: [amount, age]", "numeric: amount", "features.numeric: this is text; allowed: a list"),
            ("[amount, age]", "[amount, 3]", "features.numeric[1]: this is a number; allowed: text"),
            ("[amount, age]", "[amount, yes]", "features.numeric[1]: this is true or false; allowed: text"),
            ("{floors: {lift: 1.5}}", "1", "gate: this is a number; allowed: a mapping"),
            ("{lift: 1.5}", "[1]", "gate.floors: this is a list; allowed: a mapping"),
            ("threads: 2", "threads: 2.5", "resources.threads: this is a number; allowed: a whole number"),
            ("threads: 2", "threads: yes", "resources.threads: this is true or false; allowed: a number"),
            ("threads: 2", "threads: 257", "resources.threads: it should be less than or equal to 256"),
            ("lift: 1.5", "lift: .nan", "gate.floors.lift: not a finite number"),
            ("lift: 1.5", "lift:", "gate.floors.lift: there is nothing after the key"),
            ("gate: {floors: {lift: 1.5}}", "gate:", "gate: there is nothing after the key"),
            ("lengths: [1h]", "lengths: []", "features.windows[1].lengths: "),
            ("pipeline: cards", "pipeline: my cards", "pipeline: "),
            ("  numeric", "  transform: nowhere\n  numeric", "features.transform: "),
            (
                "  parameters",
                "  kind: xgboots\n  parameters",
                "learner.kind: not a known value; allowed: lightgbm, sgd",
            ),
            ("key: id\n  cursor", "key: 1\n  cursor", "source.key: this is a number; allowed: text"),
        ],
    )
    def test_say_where_and_what_is_allowed(self, old, new, says):
        error = _error(_changed(old, new))
        assert len(error.details["problems"]) == 1
        assert f": {says}" in error.message

    @pytest.mark.parametrize(
        ("old", "new", "line", "path"),
        [
            # What a rule says stands at the word that it is about, wherever the rule was asked.
            ("event_time: at", "event_time: at\ncolumns: {age: {known: after}}", 17, "features.numeric[1]"),
            ("event_time: at", "event_time: at\ncolumns: {card: {known: after}}", 19, "features.windows[0].keys[0]"),
            (", column: amount", "", 19, "features.windows[1]"),
            ("[amount, age]", "[amount,\n            age, amount]", 17, "features.numeric[2]"),
            ("gate:", "operating_point: {recall: 0.5, precision: 0.5}\ngate:", 22, "operating_point"),
        ],
    )
    def test_of_a_rule_between_values_stand_at_the_value(self, old, new, line, path):
        assert _problems(_changed(old, new)) == [(line, path)]

    def test_of_a_key_given_twice_stand_at_the_second(self):
        error = _error(_changed("event_time: at\n", "event_time: at\nevent_time: at\n"))
        assert error.message == "x.yaml:9: event_time: the key is here twice, first on line 8"

    def test_pickle_and_cross_as_json_for_reports(self):
        error = _error(_changed("512MiB", "half"))
        assert pickle.loads(pickle.dumps(error)).details == error.details
        assert json.loads(json.dumps(error.to_json()))["details"]["problems"][0]["line"] == 23


class TestYaml:
    @pytest.mark.parametrize(
        ("text", "line", "says"),
        [
            ("", 1, "empty"),
            ("# nothing\n", 1, "empty"),
            ("- a\n- b\n", 1, "mapping"),
            ("\njust words\n", 2, "mapping"),
            ("a: 1\nb: [1, 2\nc: 3\n", 3, "not YAML"),
            ("a: 1\n\tb: 2\n", 2, "not YAML"),
            ("a: 1\n---\nb: 2\n", 2, "not YAML"),
            ("a: *nowhere\n", 1, "not YAML"),
            ("a: {b: ${ROOM}, c: 1}\n", 1, "put quotes around ${...}"),
            ("a: 1\nb: \x00\n", 2, "not YAML"),
            ("[" * 20_000, 1, "nested"),
        ],
    )
    def test_that_holds_no_pipeline_is_refused_with_its_line(self, text, line, says):
        error = _error(text)
        assert error.message.startswith(f"x.yaml:{line}: ")
        assert says in error.message
        assert len(error.details["problems"]) == 1

    @pytest.mark.parametrize(
        "text",
        [
            _changed("[amount, age]", "!!python/object/apply:os.system [x]"),
            _changed("num_trees: 200", "num_trees: !!int many"),
            _changed("num_trees: 200", "num_trees: !here 200"),
            _changed("num_trees: 200", f"num_trees: {'9' * 5_000}"),
            _changed("{num_trees: 200, learning_rate: 0.05}", "&loop {again: *loop}"),
            _changed("{num_trees: 200, learning_rate: 0.05}", "{<<: {a: 1}}"),
            _changed("{num_trees: 200, learning_rate: 0.05}", "{[a, b]: 1}"),
        ],
    )
    def test_beyond_plain_values_is_refused(self, text):
        assert _problems(text)[0][1].startswith(("learner", "features.numeric"))

    def test_aliases_that_stand_for_billions_of_values_are_refused(self):
        nested = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
            f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
        )
        assert "more than 20000 values" in _error(nested).message

    def test_an_alias_is_the_value_that_it_names(self):
        spec = _spec(_changed("[3h, 7d]", "&lengths [3h, 7d]").replace("[1h]", "*lengths"))
        assert spec.features.windows[1].lengths == (timedelta(hours=3), timedelta(days=7))

    def test_names_that_yaml_has_other_uses_for_are_names_as_keys(self):
        spec = _spec(GOOD + "columns: {on: {known: at_event}, 2013: {known: after}}\n")
        assert set(spec.columns) == {"on", "2013"}

    def test_numbers_with_an_exponent_are_numbers(self):
        parameters = _spec(_changed("learning_rate: 0.05", "a: 1e-3, b: 2E5, c: '1e-3', d: e5")).learner.parameters
        assert parameters == {"num_trees": 200, "a": 0.001, "b": 200_000.0, "c": "1e-3", "d": "e5"}

    def test_cut_anywhere_is_read_or_refused_and_nothing_else(self):
        errors = [_refusal(GOOD[:cut]) for cut in range(0, len(GOOD), 3)]
        assert None in errors
        assert all(error.details["problems"] for error in errors if error)

    def test_with_characters_changed_is_read_or_refused_and_nothing_else(self):
        chance = random.Random(20130101)
        lines = []
        for _ in range(300):
            place = chance.randrange(len(GOOD))
            text = GOOD[:place] + chance.choice("[]{}:,-'\"&*!|>%@#?\t\n0 x$") + GOOD[place + 1 :]
            error = _refusal(text)
            if error:
                lines.append((error.details["problems"][0]["line"], text.count("\n") + 1))
        assert 100 < len(lines) < 300
        assert all(1 <= line <= last for line, last in lines)


class TestFiles:
    def test_that_are_missing_are_answered_with_those_beside_them(self, tmp_path):
        (tmp_path / "flights.yaml").write_text(GOOD)
        (tmp_path / "cards.yaml").write_text(GOOD)
        (tmp_path / "notes.txt").write_text("x")
        with pytest.raises(SpecError) as caught:
            load_spec(tmp_path / "flihgts.yaml")
        assert str(tmp_path / "flihgts.yaml") in caught.value.message
        assert caught.value.details["found"] == [str(tmp_path / "cards.yaml"), str(tmp_path / "flights.yaml")]
        assert f"did you mean '{tmp_path / 'flights.yaml'}'?" in caught.value.hint
        assert "notes" not in caught.value.hint

    def test_in_a_directory_that_is_not_there_are_missing_too(self, tmp_path):
        with pytest.raises(SpecError, match="there is no such file") as caught:
            load_spec(tmp_path / "nowhere" / "x.yaml")
        assert "headrace init" in caught.value.hint

    def test_that_are_directories_are_refused_with_what_is_in_them(self, tmp_path):
        (tmp_path / "cards.yaml").write_text(GOOD)
        with pytest.raises(SpecError, match="a directory") as caught:
            load_spec(tmp_path)
        assert "cards.yaml" in caught.value.hint

    def test_that_are_not_utf_8_are_refused_with_the_line(self, tmp_path):
        path = tmp_path / "x.yaml"
        path.write_bytes(b"pipeline: cards\nworkspace: caf\xe9\n")
        with pytest.raises(SpecError) as caught:
            load_spec(path)
        assert caught.value.message == f"{path}:2: byte 0xe9 is not UTF-8; save the file as UTF-8"

    def test_with_a_byte_order_mark_or_windows_line_ends_are_read(self, tmp_path):
        path = tmp_path / "x.yaml"
        path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
        assert load_spec(path, environ={}) == _spec(GOOD)

    def test_are_read_with_the_environment_of_the_process(self, tmp_path, monkeypatch):
        (tmp_path / "x.yaml").write_text(GOOD)
        monkeypatch.setenv("ROOM", "elsewhere")
        assert load_spec(tmp_path / "x.yaml").workspace == "elsewhere/cards"
