//! `config/deploy`: the alert rules and the dashboard use only samples that a scrape has.

use std::{collections::BTreeSet, fs};

use serde_json::Value;

use crate::support::Server;

fn deployed(file: &str) -> String {
    fs::read_to_string(format!("{}/config/deploy/{file}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// Returns the names of greenroom's samples in an expression.
fn names(expression: &str) -> BTreeSet<String> {
    let word = |c: char| !c.is_ascii_alphanumeric() && c != '_';
    let words = expression.split(word).filter(|word| word.starts_with("greenroom_"));
    words.map(str::to_owned).collect()
}

/// Returns the values with which an expression compares a label, if they are a list of words.
fn selected(expression: &str, label: &str) -> Vec<String> {
    let comparison = format!("{label}=");
    let comparisons = expression.split(&comparison).skip(1);
    let quoted = comparisons
        .filter_map(|rest| rest.trim_start_matches('~').strip_prefix('"')?.split('"').next());
    quoted.flat_map(|words| words.split('|')).map(str::to_owned).collect()
}

/// Checks that a scrape has every sample that these expressions name, and every label value that
/// they select.
#[track_caller]
fn assert_scraped(expressions: &[String]) {
    let scrape = Server::usual().scrape();
    for expression in expressions {
        for name in names(expression) {
            assert!(!scrape.named(&name).is_empty(), "no {name} is scraped: {expression}");
        }
        for label in ["blocked_by", "kind", "status", "reason", "class", "result"] {
            for word in selected(expression, label) {
                let mut named =
                    scrape.0.iter().filter(|sample| names(expression).contains(&sample.name));
                let known = named.any(|sample| sample.labels.get(label) == Some(&word));
                assert!(known, "no {label}={word} is scraped: {expression}");
            }
        }
    }
}

/// One alert rule, its fields by name.
type Alert = Vec<(String, String)>;

/// Parses the alert rules: only the part of YAML that the file uses. Scalars are plain or in single
/// quotes; `>-` folds the more indented lines after it.
fn alerts(text: &str) -> Vec<Alert> {
    let mut lines = text.lines().filter(|line| !line.trim_start().starts_with('#')).peekable();
    for line in ["groups:", "  - name: greenroom", "    rules:"] {
        assert_eq!(lines.next(), Some(line));
    }
    let mut alerts: Vec<Alert> = Vec::new();
    while let Some(line) = lines.next() {
        assert!(!line.contains('\t') && line.trim_end() == line && !line.is_empty(), "{line:?}");
        if let Some(name) = line.strip_prefix("      - alert: ") {
            alerts.push(vec![("alert".into(), name.into())]);
            continue;
        }
        let field = line.trim_start();
        let (name, value) = field.split_once(':').unwrap_or_else(|| panic!("no field: {line}"));
        let depth = match name {
            "expr" | "for" | "labels" | "annotations" => 8,
            "severity" | "summary" | "description" => 10,
            _ => panic!("an unknown field: {line}"),
        };
        assert_eq!(line.len() - field.len(), depth, "{line}");
        let value = match value.strip_prefix(' ').unwrap_or_default() {
            ">-" => {
                let mut folded = Vec::new();
                while let Some(more) = lines.next_if(|line| line.starts_with("            ")) {
                    folded.push(more.trim().to_owned());
                }
                folded.join(" ")
            }
            quoted if quoted.starts_with('\'') => {
                let inner =
                    quoted[1..].strip_suffix('\'').unwrap_or_else(|| panic!("open: {line}"));
                assert!(!inner.contains('\''), "{line}");
                inner.to_owned()
            }
            plain => {
                let sound = |c: char| c.is_ascii_alphanumeric();
                assert!(plain.chars().all(sound), "a plain scalar is one word: {line}");
                plain.to_owned()
            }
        };
        let alert = alerts.last_mut().unwrap_or_else(|| panic!("a field without an alert: {line}"));
        assert!(alert.iter().all(|(known, _)| known != name), "duplicate field: {line}");
        alert.push((name.into(), value));
    }
    alerts
}

/// Each alert has a duration, a known severity, and a description of what to do.
#[test]
fn the_alerts_are_well_formed_and_use_scraped_samples() {
    let alerts = alerts(&deployed("alerts.yml"));
    assert!(alerts.len() > 10, "{alerts:?}");
    let mut seen = BTreeSet::new();
    for alert in &alerts {
        let fields: Vec<&str> = alert.iter().map(|(name, _)| name.as_str()).collect();
        let all =
            ["alert", "expr", "for", "labels", "severity", "annotations", "summary", "description"];
        assert_eq!(fields, all, "{alert:?}");
        let value = |name: &str| &alert.iter().find(|(field, _)| field == name).unwrap().1;
        assert!(seen.insert(value("alert").clone()), "{alert:?}");
        assert!(value("alert").starts_with("Greenroom"), "{alert:?}");
        assert!(["critical", "warning", "info"].contains(&value("severity").as_str()), "{alert:?}");
        let (number, unit) = value("for").split_at(value("for").len() - 1);
        assert!(number.parse::<u32>().is_ok() && ["m", "h"].contains(&unit), "{alert:?}");
        assert!(value("description").len() > 80, "the description is too short: {alert:?}");
        for name in ["expr", "summary"] {
            assert!(!value(name).is_empty(), "{alert:?}");
        }
        let expression = value("expr");
        // `degraded` is visible only between attempts: each makes the group `starting` or
        // `running`.
        let is_fleeting = expression.contains(r#"status="degraded""#);
        assert!(!is_fleeting || expression.contains("max_over_time("), "{alert:?}");
        assert_eq!(expression.matches('(').count(), expression.matches(')').count(), "{alert:?}");
    }
    let texts = alerts.iter().flatten().map(|(_, value)| value.clone());
    assert_scraped(&texts.collect::<Vec<_>>());
}

/// The dashboard is JSON, its data source is a variable, and it has all rows.
#[test]
fn the_dashboard_is_well_formed_and_uses_scraped_samples() {
    let dashboard: Value = serde_json::from_str(&deployed("dashboard.json")).unwrap();
    let variable = &dashboard["templating"]["list"][0];
    assert_eq!(
        (&variable["name"], &variable["type"]),
        (&"datasource".into(), &"datasource".into())
    );
    let (mut rows, mut ids, mut expressions) = (Vec::new(), BTreeSet::new(), Vec::new());
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        if panel["type"] == "row" {
            rows.push(panel["title"].as_str().unwrap());
            continue;
        }
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{panel}");
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{panel}");
        for target in targets {
            let expression = target["expr"].as_str().unwrap();
            assert!(!names(expression).is_empty(), "{target}");
            expressions.push(expression.to_owned());
        }
    }
    assert_eq!(rows, ["Queue", "Turns", "Compactions", "Agents", "Storage", "HTTP"]);
    assert_scraped(&expressions);
}
