//! The printed table: a row for each target, and the arithmetic of repeated runs.

use std::fmt;

/// One row of the printed table.
#[derive(Default)]
pub struct Line {
    /// The measured work.
    pub name: String,
    /// greenroom's figure.
    pub greenroom: String,
    /// The machine's figure in the same run, without greenroom.
    pub limit: String,
    /// greenroom against the limit.
    pub ratio: String,
    /// The published figure of the nearest system.
    pub published: &'static str,
    /// The target.
    pub target: &'static str,
    /// Whether the target is met; absent: there is no target, the row explains another one.
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

/// Returns the median of several runs.
pub fn median(mut runs: Vec<f64>) -> f64 {
    runs.sort_by(f64::total_cmp);
    runs.get(runs.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Returns the mean of several runs, for figures that are too coarse in each run.
pub fn mean(runs: &[f64]) -> f64 {
    runs.iter().sum::<f64>() / runs.len() as f64
}

/// Returns the value that `share` of all values do not exceed.
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    let at = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(at.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// Formats a rate a second.
pub fn rate(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{:.2}M/s", value / 1e6),
        value if value >= 1e4 => format!("{:.0}k/s", value / 1e3),
        value if value >= 1e3 => format!("{:.1}k/s", value / 1e3),
        value => format!("{value:.0}/s"),
    }
}

/// Formats seconds as milliseconds.
pub fn ms(seconds: f64) -> String {
    let ms = seconds * 1e3;
    if ms < 10.0 { format!("{ms:.1} ms") } else { format!("{ms:.0} ms") }
}

/// Formats seconds as microseconds.
pub fn us(seconds: f64) -> String {
    format!("{:.2} µs", seconds * 1e6)
}

/// Formats bytes as MiB.
pub fn mib(bytes: f64) -> String {
    format!("{:.0} MiB", bytes / f64::from(1 << 20))
}

/// Formats the ratio of two figures.
pub fn ratio(value: f64, limit: f64) -> String {
    format!("{:.2}", value / limit)
}
