//! A strict parser of the part of the OpenMetrics text format, 1.0.0, that greenroom writes.

use std::collections::{BTreeMap, BTreeSet};

use super::{Server, eventually};

/// Labels by name.
pub type Labels = BTreeMap<String, String>;

/// One line with a value.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub name: String,
    pub labels: Labels,
    pub value: f64,
}

/// A family: its type, and its samples in order.
#[derive(Clone, Debug, Default)]
pub struct Family {
    pub kind: String,
    pub samples: Vec<Sample>,
}

/// All families of one scrape, by name.
#[derive(Clone, Debug)]
pub struct Scrape(pub BTreeMap<String, Family>);

impl Scrape {
    /// The sample with this name and exactly these labels.
    pub fn find(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let labels: Labels =
            labels.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let mut samples = self.0.values().flat_map(|family| &family.samples);
        samples
            .find(|sample| sample.name == name && sample.labels == labels)
            .map(|sample| sample.value)
    }

    /// [`Self::find`] of a sample that must exist.
    #[track_caller]
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.find(name, labels).unwrap_or_else(|| panic!("no {name} {labels:?} in {self:#?}"))
    }

    /// The sum of all samples with this name.
    pub fn sum(&self, name: &str) -> f64 {
        self.named(name).iter().map(|sample| sample.value).sum()
    }

    /// All samples with this name.
    pub fn named(&self, name: &str) -> Vec<&Sample> {
        let samples = self.0.values().flat_map(|family| &family.samples);
        samples.filter(|sample| sample.name == name).collect()
    }
}

impl Server {
    /// Scrapes and parses strictly.
    #[track_caller]
    pub fn scrape(&self) -> Scrape {
        let reply = self.get("/metrics");
        assert_eq!(reply.status, 200, "{}", reply.text());
        assert_eq!(
            reply.header("content-type"),
            Some("application/openmetrics-text; version=1.0.0; charset=utf-8")
        );
        parse(&reply.text()).unwrap_or_else(|wrong| panic!("{wrong}\n{}", reply.text()))
    }

    /// Scrapes until a sample has this value.
    #[track_caller]
    pub fn wait_metric(&self, name: &str, labels: &[(&str, &str)], value: f64) -> Scrape {
        let what = format!("{name} {labels:?} to be {value}");
        self.wait_scrape(&what, |scrape| scrape.value(name, labels) == value)
    }

    /// Scrapes until `fits` accepts the scrape.
    #[track_caller]
    pub fn wait_scrape(&self, what: &str, fits: impl Fn(&Scrape) -> bool) -> Scrape {
        eventually(what, &self.log, || Some(self.scrape()).filter(&fits))
    }
}

/// Parses an exposition, or returns its first error.
pub fn parse(text: &str) -> Result<Scrape, String> {
    let body = text.strip_suffix("# EOF\n").ok_or("it does not end with # EOF")?;
    if !body.is_empty() && !body.ends_with('\n') {
        return Err("its last line has no line end".into());
    }
    let mut families = BTreeMap::new();
    let mut lines = body.lines().peekable();
    while let Some(line) = lines.next() {
        let (name, help) = after(line, "# HELP ").ok_or(format!("no HELP: {line}"))?;
        escaped(help, "n\\\"")?;
        if help.is_empty() || !is_name(name) {
            return Err(format!("no name, or no help: {line}"));
        }
        let typed = lines.next().and_then(|line| after(line, "# TYPE "));
        let (same, kind) = typed.ok_or(format!("no TYPE after {line}"))?;
        if same != name || !["counter", "gauge", "histogram", "info"].contains(&kind) {
            return Err(format!("TYPE {same} {kind} after {line}"));
        }
        let mut samples = Vec::new();
        while let Some(line) = lines.next_if(|line| !line.starts_with('#')) {
            samples.push(sample(line)?);
        }
        let family = Family { kind: kind.to_owned(), samples };
        check(name, &family)?;
        if families.insert(name.to_owned(), family).is_some() {
            return Err(format!("{name} occurs twice"));
        }
    }
    Ok(Scrape(families))
}

fn after<'a>(line: &'a str, sign: &str) -> Option<(&'a str, &'a str)> {
    line.strip_prefix(sign)?.split_once(' ')
}

fn is_name(name: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    name.starts_with("greenroom_") && name.chars().all(word) && !name.contains("__")
}

/// Unescapes `text`, in which only `\n` and the `allowed` characters may be escaped.
fn escaped(text: &str, allowed: &str) -> Result<String, String> {
    let (mut plain, mut chars) = (String::new(), text.chars());
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some('n') => plain.push('\n'),
                Some(c) if allowed.contains(c) => plain.push(c),
                _ => return Err(format!("a wrong escape in {text:?}")),
            },
            c => plain.push(c),
        }
    }
    Ok(plain)
}

fn sample(line: &str) -> Result<Sample, String> {
    let wrong = |why: &str| format!("{why}: {line}");
    let end = line.find(['{', ' ']).ok_or(wrong("no value"))?;
    let (name, mut rest) = line.split_at(end);
    if !is_name(name) {
        return Err(wrong("no name"));
    }
    let mut labels = Labels::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            let (label, quoted) = rest.split_once("=\"").ok_or(wrong("no label"))?;
            let mut slashes = 0;
            let close = quoted.find(|c: char| {
                let closes = c == '"' && slashes % 2 == 0;
                slashes = if c == '\\' { slashes + 1 } else { 0 };
                closes
            });
            let (value, remainder) = quoted.split_at(close.ok_or(wrong("an open quote"))?);
            let sound =
                !label.is_empty() && label.chars().all(|c| c.is_ascii_lowercase() || c == '_');
            if !sound || labels.insert(label.into(), escaped(value, "\\\"")?).is_some() {
                return Err(wrong("an invalid label, or a duplicate"));
            }
            rest = &remainder[1..];
            match rest.strip_prefix(',') {
                Some(more) => rest = more,
                None => break,
            }
        }
        rest = rest.strip_prefix('}').ok_or(wrong("no end of the labels"))?;
    }
    let number = rest.strip_prefix(' ').ok_or(wrong("no value"))?;
    let value: f64 = number.parse().map_err(|_| wrong("no number"))?;
    if number.trim() != number || !value.is_finite() || value < 0.0 {
        return Err(wrong("a value that greenroom never writes"));
    }
    Ok(Sample { name: name.to_owned(), labels, value })
}

/// Checks that a family's samples fit its type.
fn check(name: &str, family: &Family) -> Result<(), String> {
    let suffixes: &[&str] = match family.kind.as_str() {
        "counter" => &["_total"],
        "info" => &["_info"],
        "histogram" => &["_sum", "_count", "_bucket"],
        _ => &[""],
    };
    let mut seen = BTreeSet::new();
    for sample in &family.samples {
        let suffix = sample.name.strip_prefix(name);
        if !suffix.is_some_and(|suffix| suffixes.contains(&suffix)) {
            return Err(format!("{} in the {} {name}", sample.name, family.kind));
        }
        if !seen.insert((&sample.name, &sample.labels)) {
            return Err(format!("duplicate sample: {sample:?}"));
        }
    }
    if family.samples.is_empty() {
        return Err(format!("{name} has no sample"));
    }
    if family.kind == "histogram" { check_histogram(name, family) } else { Ok(()) }
}

/// The buckets of one histogram by their bounds, its count and its sum.
type Series = (Vec<(f64, f64)>, Option<f64>, Option<f64>);

/// Checks that buckets are in order and cumulative, the last one infinite and equal to the count.
fn check_histogram(name: &str, family: &Family) -> Result<(), String> {
    let mut series: BTreeMap<Labels, Series> = BTreeMap::new();
    for Sample { name: sample, labels, value } in &family.samples {
        let mut labels = labels.clone();
        let bound = labels.remove("le");
        let (buckets, count, sum) = series.entry(labels).or_default();
        match (sample.strip_prefix(name), bound) {
            (Some("_bucket"), Some(bound)) => {
                let bound = bound.parse().map_err(|_| format!("le {bound} in {name}"))?;
                buckets.push((bound, *value));
            }
            (Some("_count"), None) => *count = Some(*value),
            (Some("_sum"), None) => *sum = Some(*value),
            _ => return Err(format!("{sample} with or without le")),
        }
    }
    for (labels, (buckets, count, sum)) in series {
        let grows = buckets.windows(2).all(|two| two[0].0 < two[1].0 && two[0].1 <= two[1].1);
        let last = buckets.last().filter(|(bound, _)| *bound == f64::INFINITY);
        if !grows || sum.is_none() || count.is_none() || last.map(|(_, last)| *last) != count {
            return Err(format!("{name} {labels:?}: {buckets:?}, count {count:?}"));
        }
    }
    Ok(())
}
