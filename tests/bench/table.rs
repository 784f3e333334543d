//! What is printed: a row for each target, and the arithmetic of repeated runs.

use std::fmt;

/// One row of the printed table.
#[derive(Default)]
pub struct Line {
    /// What was done.
    pub name: String,
    /// What greenroom made of it.
    pub greenroom: String,
    /// What the machine made of it in the same run, without greenroom.
    pub limit: String,
    /// greenroom against the limit.
    pub ratio: String,
    /// What the nearest system was published to make of it, elsewhere.
    pub published: &'static str,
    /// What greenroom should make of it.
    pub target: &'static str,
    /// Whether it does; absent: there is no target, the row explains another one.
    pub holds: Option<bool>,
}

/// Prints the head of the table.
pub fn print_head() {
    println!("| row | greenroom | raw limit | ratio | rooms (published) | target | holds |");
    println!("|---|--:|--:|--:|--:|---|---|");
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let holds = match self.holds {
            Some(true) => "yes",
            Some(false) => "**no**",
            None => "",
        };
        let Self { name, greenroom, limit, ratio, published, target, .. } = self;
        write!(f, "| {name} | {greenroom} | {limit} | {ratio} | {published} | {target} | {holds} |")
    }
}

/// The middle one of several runs.
pub fn median(mut runs: Vec<f64>) -> f64 {
    runs.sort_by(f64::total_cmp);
    runs.get(runs.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The mean of several runs: for what is counted too coarsely in each.
pub fn mean(runs: &[f64]) -> f64 {
    runs.iter().sum::<f64>() / runs.len() as f64
}

/// The value that `share` of all values do not exceed.
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    let at = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(at.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// A rate a second.
pub fn rate(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{:.2}M/s", value / 1e6),
        value if value >= 1e4 => format!("{:.0}k/s", value / 1e3),
        value if value >= 1e3 => format!("{:.1}k/s", value / 1e3),
        value => format!("{value:.0}/s"),
    }
}

/// Seconds, as milliseconds.
pub fn ms(seconds: f64) -> String {
    let ms = seconds * 1e3;
    if ms < 10.0 { format!("{ms:.1} ms") } else { format!("{ms:.0} ms") }
}

/// Seconds, as microseconds.
pub fn us(seconds: f64) -> String {
    format!("{:.2} µs", seconds * 1e6)
}

/// Bytes, as MiB.
pub fn mib(bytes: f64) -> String {
    format!("{:.0} MiB", bytes / f64::from(1 << 20))
}

/// One against the other.
pub fn ratio(value: f64, limit: f64) -> String {
    format!("{:.2}", value / limit)
}
