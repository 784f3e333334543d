//! A strict parser of the part of the OpenMetrics text format, 1.0.0, that greenroom writes: no
//! label needs an escape.

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

/// All samples of one scrape, in order.
#[derive(Clone, Debug)]
pub struct Scrape(pub Vec<Sample>);

impl Scrape {
    /// The value of the sample with this name and exactly these labels, which must exist.
    #[track_caller]
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let wanted: Labels =
            labels.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let found = self.0.iter().find(|sample| sample.name == name && sample.labels == wanted);
        found.unwrap_or_else(|| panic!("no {name} {labels:?} in {self:#?}")).value
    }

    /// The sum of all samples with this name.
    pub fn sum(&self, name: &str) -> f64 {
        self.named(name).iter().map(|sample| sample.value).sum()
    }

    /// All samples with this name.
    pub fn named(&self, name: &str) -> Vec<&Sample> {
        self.0.iter().filter(|sample| sample.name == name).collect()
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
    let body = text.strip_suffix("\n# EOF\n").and_then(|body| body.strip_prefix("# HELP "));
    let (mut families, mut scrape) = (BTreeSet::new(), Vec::new());
    for family in body.ok_or("no HELP, or no EOF")?.split("\n# HELP ") {
        let mut lines = family.lines();
        let (name, help) = lines.next().and_then(|line| line.split_once(' ')).unwrap_or_default();
        let kind = lines.next().and_then(|line| line.strip_prefix(&format!("# TYPE {name} ")));
        let suffixes: &[&str] = match kind {
            Some("counter") => &["_total"],
            Some("gauge") => &[""],
            Some("info") => &["_info"],
            Some("histogram") => &["_sum", "_count", "_bucket"],
            _ => return Err(format!("no HELP or no TYPE: {family}")),
        };
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let is_name = name.starts_with("greenroom_") && name.chars().all(word);
        if help.is_empty() || !is_name || name.contains("__") || !families.insert(name) {
            return Err(format!("no help, no name, or a duplicate: {family}"));
        }
        let mut samples: Vec<Sample> = Vec::new();
        for line in lines {
            let read = sample(line).filter(|sample| {
                let suffix = sample.name.strip_prefix(name);
                suffix.is_some_and(|suffix| suffixes.contains(&suffix))
            });
            let Sample { name, labels, .. } = read.as_ref().ok_or(format!("no sample: {line}"))?;
            if samples.iter().any(|other| other.name == *name && other.labels == *labels) {
                return Err(format!("a duplicate: {line}"));
            }
            samples.extend(read);
        }
        if samples.is_empty() || !samples.windows(2).all(grows) {
            return Err(format!("no sample, or buckets that are not cumulative: {family}"));
        }
        scrape.extend(samples);
    }
    Ok(Scrape(scrape))
}

fn sample(line: &str) -> Option<Sample> {
    let (series, number) = line.rsplit_once(' ')?;
    let value = number.parse().ok().filter(|value: &f64| value.is_finite() && *value >= 0.0)?;
    let mut labels = Labels::new();
    let Some((name, inner)) = series.split_once('{') else {
        return Some(Sample { name: series.into(), labels, value });
    };
    for pair in inner.strip_suffix("\"}")?.split("\",") {
        let (label, text) = pair.split_once("=\"")?;
        let sound = !label.is_empty() && label.chars().all(|c| c.is_ascii_lowercase() || c == '_');
        if !sound
            || text.contains(['\\', '"'])
            || labels.insert(label.into(), text.into()).is_some()
        {
            return None;
        }
    }
    Some(Sample { name: name.into(), labels, value })
}

/// Whether two buckets, if they follow each other in one histogram, are in order and cumulative.
fn grows(two: &[Sample]) -> bool {
    let split = |sample: &Sample| {
        let mut labels = sample.labels.clone();
        let bound = labels.remove("le").and_then(|bound| bound.parse::<f64>().ok());
        (labels, bound)
    };
    let ((first, low), (second, high)) = (split(&two[0]), split(&two[1]));
    low.is_none() || high.is_none() || first != second || low < high && two[0].value <= two[1].value
}
