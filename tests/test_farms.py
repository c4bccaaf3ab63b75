"""What docs/ gives to those with many printers names nothing that is not there."""

import json
import re
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from portretry_udev import metrics, settings, words
from portretry_udev.tally import KINDS
from test_metrics import SHOT

DOCS = Path(__file__).resolve().parents[1] / "docs"
ALERTS = yaml.safe_load((DOCS / "alerts.yml").read_text())
DASHBOARD = json.loads((DOCS / "dashboard.json").read_text())
FAMILIES = list(text_string_to_metric_families(metrics.render([("mk3", SHOT)], "udev", 0.0).decode()))
SAMPLES = {sample.name: set(sample.labels) for family in FAMILIES for sample in family.samples}
NOT_OURS = {"node_textfile_mtime_seconds"}
VALUES = {
    "state": set(words.STATES),
    "kind": {kind.value for kind in KINDS},
    "source": {"udev", "kernel", "none"},
}
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
ALERT_QUERIES = {rule["alert"]: rule["expr"] for rule in RULES}
PANEL_QUERIES = {
    f"{panel['title']} {target['refId']}": target["expr"]
    for panel in DASHBOARD["panels"]
    for target in panel["targets"]
}


@pytest.mark.parametrize(("title", "query"), [*ALERT_QUERIES.items(), *PANEL_QUERIES.items()])
def test_a_query_names_what_is_there(title, query):
    """Each metric, each of its labels, and each state, kind and source."""
    names = re.findall(r"\b(?:portretry|node)_\w+", query)
    assert names, title
    assert set(names) <= SAMPLES.keys() | NOT_OURS
    for name, selectors in re.findall(r"\b(portretry_\w+)\{([^}]*)\}", query):
        for label, wanted in re.findall(r'(\w+)=~?"([^"]*)"', selectors):
            assert label in SAMPLES[name] | {"instance"}, f"{name} has no label {label}"
            if label in VALUES:
                assert set(wanted.split("|")) <= VALUES[label]
    for labels in re.findall(r"\bby \(([^)]*)\)", query):
        assert set(re.split(r", *", labels)) <= set().union(*SAMPLES.values()) | {"instance"}


def test_an_alert_says_what_to_do():
    """And names where; what stands in its text is a label that its metric has."""
    for rule in RULES:
        texts = rule["annotations"]
        assert texts.keys() == {"summary", "action"}
        assert "$labels.instance" in texts["summary"]
        labels = set().union(
            *(SAMPLES.get(name, set()) for name in re.findall(r"portretry_\w+", rule["expr"]))
        )
        assert set(re.findall(r"\$labels\.(\w+)", " ".join(texts.values()))) <= labels | {"instance"}
        assert rule["labels"]["severity"] in {"info", "warning", "critical"}


def test_alerts_name_commands_that_there_are():
    """Nobody is sent to a command that does not exist."""
    from portretry_udev.cli import main  # noqa: PLC0415 - only here

    text = " ".join(rule["annotations"]["action"] for rule in RULES)
    typed = set(re.findall(r"portretry-udev ([a-z]+) (?:names|ends|says|\{\{)", text))
    assert typed == {"status", "retry", "resume"}
    assert typed <= set(main.commands)


def test_the_dashboard_can_be_imported():
    """Panels with numbers of their own that do not lie upon each other, each from the chosen Prometheus."""
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) >= 12
    cells = [
        (x, y)
        for panel in panels
        for place in [panel["gridPos"]]
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    variables = {each["name"] for each in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(?!__)(\w+)", json.dumps(DASHBOARD)))
    assert used == variables


def test_the_table_of_metrics_is_complete():
    """Every metric stands in docs/farms.md with its labels, and none that there is not."""
    rows = re.findall(r"^\| `(portretry_\w+)` \|([^|]*)\|", (DOCS / "farms.md").read_text(), re.MULTILINE)
    told = {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in rows}
    there = {}
    for family in FAMILIES:
        name = f"{family.name}_total" if family.type == "counter" else family.name
        there[name] = set(family.samples[0].labels) - {"le"}
    assert told == there


def test_the_inventory_names_settings_that_there_are():
    """Whoever copies the example is understood."""
    inventory = yaml.safe_load((DOCS / "ansible" / "inventory.example.yml").read_text())
    for host in inventory["octoprints"]["hosts"].values():
        for printer in host["portretry_printers"].values():
            assert printer.keys() - {"api_key"} <= settings.PRINTER.keys() | set(settings.TABLES)


def test_a_key_is_never_shown_nor_for_others():
    """Each task that touches a key hides what it does, and writes it for root alone."""
    (play,) = yaml.safe_load((DOCS / "ansible" / "portretry.yml").read_text())
    touching = [task for task in play["tasks"] if "api_key }}" in json.dumps(task)]
    (task,) = touching
    assert task["no_log"] is True
    assert task["ansible.builtin.copy"]["mode"] == "0600"
    assert task["loop_control"] == {"label": "{{ item.key }}"}
    template = (DOCS / "ansible" / "config.toml.j2").read_text()
    assert 'if setting != "api_key"' in template
    assert ".api_key" not in template
