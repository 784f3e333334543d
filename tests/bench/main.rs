//! The benchmark: greenroom against its targets, each row beside the machine's limit in the same
//! run. Prints a Markdown table.
//!
//! ```text
//! cargo run --release --example bench [-- [--quick] [ROW…]]
//! ```
//!
//! All rows take about five minutes. `--quick` checks in a few seconds a row that everything works;
//! its figures mean nothing. Figures of different runs differ by 20 %: compare only figures of one
//! row. The figures of the nearest system were published elsewhere and measured on another machine.

mod bare;
mod crowd;
mod database;
mod frame_path;
mod http;
mod pace;
mod rows;
mod server;
mod subscriber;
mod table;

use std::{
    env,
    error::Error,
    fs,
    process::ExitCode,
    time::{Duration, Instant},
};

use greenroom_test_support::programs::{build, built};

use crate::{server::FAILING, table::Line};

/// Any error ends the benchmark with its own message.
pub type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// The amount of work of each row.
pub struct Scale {
    /// How often a figure is measured; the median counts.
    pub runs: usize,
    /// Frames in one stream.
    pub frames: usize,
    /// Frames of a long transcript.
    pub history: usize,
    /// Turns one after another.
    pub turns: u64,
    /// Idle groups.
    pub idle_groups: usize,
    /// Waiting tasks.
    pub backlog: usize,
    /// Waiting tasks that run later.
    pub queue: usize,
    /// Groups in the database at a restart.
    pub groups: usize,
    /// Groups whose turn runs when the server is killed, in two restarts.
    pub busy: [usize; 2],
    /// Frames in the database at a restart.
    pub many_frames: usize,
    /// The time of one measurement beside each disturber.
    pub phase: Duration,
}

const FULL: Scale = Scale {
    runs: 5,
    frames: 200_000,
    history: 100_000,
    turns: 1_000,
    idle_groups: 1_000,
    backlog: 50_000,
    queue: 10_000,
    groups: 5_000,
    busy: [404, 5_000],
    many_frames: 1_000_000,
    phase: Duration::from_secs(2),
};

const QUICK: Scale = Scale {
    runs: 1,
    frames: 4_000,
    history: 4_000,
    turns: 50,
    idle_groups: 20,
    backlog: 2_000,
    queue: 1_000,
    groups: 50,
    busy: [4, 50],
    many_frames: 10_000,
    phase: Duration::from_millis(300),
};

type Row = fn(&Scale) -> Result<Vec<Line>>;

/// The rows by the names to select them with.
#[rustfmt::skip]
const ROWS: [(&str, Row); 18] = [
    ("machine",    rows::machine::run),
    ("stream-200", |scale| rows::stream::run(scale, 200)),
    ("stream-2k",  |scale| rows::stream::run(scale, 2_000)),
    ("fan-out",    rows::fan_out::run),
    ("turns",      rows::turns::one_group),
    ("turns-64",   rows::turns::many_groups),
    ("attach",     rows::attach::run),
    ("memory",     rows::memory::run),
    ("restart",    rows::restart::run),
    ("restart-large", rows::restart::large),
    ("restart-busy", rows::restart::busy),
    ("disk",       rows::disk::run),
    ("queue",      rows::queue::run),
    ("drain",      rows::queue::drain),
    ("digest-fold", rows::digest::fold),
    ("digest-read", rows::digest::read),
    ("crash",      rows::crash::run),
    ("isolation",  rows::isolation::run),
];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("bench: {err}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut scale = &FULL;
    let mut wanted = Vec::new();
    for argument in env::args().skip(1) {
        match argument.as_str() {
            "--quick" => scale = &QUICK,
            row if ROWS.iter().any(|(name, _)| *name == row) => wanted.push(argument),
            _ => {
                let names = ROWS.map(|(name, _)| name).join(" ");
                return Err(format!("there is no row {argument:?}; rows: {names}").into());
            }
        }
    }
    let runs = |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name);
    if runs("isolation") {
        build_failing()?;
    }
    // The other agent is in every configuration of a test server.
    build(&["--example", "bench-agent", "--example", "scripted-agent"])?;
    table::print_head();
    for (name, row) in ROWS {
        if runs(name) {
            let start = Instant::now();
            let lines = row(scale).map_err(|err| format!("{name}: {err}"))?;
            lines.iter().for_each(|line| println!("{line}"));
            eprintln!("{name}: {:.1} s", start.elapsed().as_secs_f64());
        }
    }
    Ok(())
}

/// Builds the server with failpoints, under a name of its own; a debug build has them anyway.
fn build_failing() -> Result<()> {
    build(if cfg!(debug_assertions) { &[] } else { &["--features", "failpoints"] })?;
    if env::var_os("CARGO").is_some() {
        let server = built("greenroom")?;
        fs::copy(&server, server.with_file_name(FAILING))?;
    }
    Ok(())
}
