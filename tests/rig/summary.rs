//! The output: a line a seed, the failures and how to repeat them, and the counts of all seeds.

use std::{
    collections::{BTreeMap, HashSet},
    fmt, fs,
    time::Duration,
};

use serde_json::json;

use crate::{
    Result,
    history::{History, is_over, text},
    home,
    plan::Form,
    run::Outcome,
};

/// The counts over all seeds.
#[derive(Default)]
pub struct Summary {
    seeds: usize,
    failed: Vec<u64>,
    faults: BTreeMap<String, usize>,
    accepted: usize,
    lost: usize,
    twice: usize,
    orphans: usize,
    stuck: usize,
    damaged: usize,
    states: BTreeMap<String, usize>,
    frames: usize,
    refused: usize,
    took: Duration,
}

impl Summary {
    /// Counts a seed, prints its line, and deletes or keeps its directory.
    pub fn take(&mut self, seed: u64, form: Form, played: Result<Outcome>) {
        self.seeds += 1;
        let outcome = match played {
            Ok(outcome) => outcome,
            Err(err) => {
                self.failed.push(seed);
                println!("seed {seed}: the rig failed: {err}");
                return println!("  again: {}", again(seed, form));
            }
        };
        let Outcome { violations, history, home, took } = outcome;
        self.took += took;
        let accepted: HashSet<&str> =
            history.exchanges.iter().filter_map(|exchange| exchange.accepted()).collect();
        let (mut faults, mut states) = (BTreeMap::new(), BTreeMap::new());
        for injected in history.injected.iter().filter(|injected| injected.proof.is_some()) {
            *faults.entry(injected.fault.clone()).or_default() += 1;
        }
        for task in history.groups.values().flat_map(|group| &group.tasks) {
            let state = if is_over(task) { text(task, "state") } else { "not over" };
            *states.entry(state.to_owned()).or_default() += 1;
        }
        let of = |rule: &str| violations.iter().filter(|one| one.rule == rule).count();
        self.lost += of("accepted is kept");
        self.twice += of("sent once an attempt");
        self.orphans += history.orphans.len();
        self.stuck += history.stuck.len();
        self.damaged += history.damage.len();
        self.accepted += accepted.len();
        self.refused += history.exchanges.iter().filter(|one| one.status == 429).count();
        self.frames += history.groups.values().map(|group| group.frames.len()).sum::<usize>();
        println!(
            "seed {seed}: {}; {} accepted: {}; {} violations, {:.1} s",
            listed(&faults),
            accepted.len(),
            listed(&states),
            violations.len(),
            took.as_secs_f64()
        );
        add(&mut self.faults, faults);
        add(&mut self.states, states);
        if violations.is_empty() {
            if let Err(err) = home::remove(&home) {
                println!("  {} stays: {err}", home.path().display());
            }
            return;
        }
        self.failed.push(seed);
        for violation in violations.iter().take(20) {
            println!("  {violation}");
        }
        if let Err(err) = keep(&history, &home.file("responses.jsonl")) {
            println!("  the responses are lost: {err}");
        }
        println!("  kept: {}", home.path().display());
        println!("  again: {}", again(seed, form));
    }

    /// Whether no seed failed.
    pub fn is_clean(&self) -> bool {
        self.failed.is_empty() && 0 < self.seeds
    }
}

fn add(all: &mut BTreeMap<String, usize>, more: BTreeMap<String, usize>) {
    for (name, count) in more {
        *all.entry(name).or_default() += count;
    }
}

fn listed(counts: &BTreeMap<String, usize>) -> String {
    let shown: Vec<String> = counts.iter().map(|(name, count)| format!("{count} {name}")).collect();
    shown.join(", ")
}

fn again(seed: u64, form: Form) -> String {
    match form {
        Form::Quick => format!("cargo run --example rig -- --quick {seed}"),
        Form::Long => format!("tests/run --long {seed}"),
        Form::Kills(count) => format!("cargo run --example rig -- --kills {count} {seed}"),
    }
}

/// Writes every request and its answer to a file.
fn keep(history: &History, file: &std::path::Path) -> Result<()> {
    let lines = history.exchanges.iter().map(|one| {
        let line = json!({
            "life": one.life, "sent_us": one.sent, "answered_us": one.answered,
            "method": one.method, "path": one.path, "key": one.key, "body": one.body,
            "status": one.status, "answer": one.answer,
        });
        format!("{line}\n")
    });
    Ok(fs::write(file, lines.collect::<String>())?)
}

impl fmt::Display for Summary {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "{} seeds; {}", self.seeds, listed(&self.faults))?;
        let (accepted, refused) = (self.accepted, self.refused);
        writeln!(out, "{accepted} tasks accepted, {refused} refused as the queue was full")?;
        writeln!(out, "in the end {}", listed(&self.states))?;
        writeln!(
            out,
            "{} acknowledged tasks lost, {} run twice, {} orphans, {} stuck, {} differences in \
             verify ({} frames)",
            self.lost, self.twice, self.orphans, self.stuck, self.damaged, self.frames
        )?;
        if self.failed.is_empty() {
            write!(out, "no seed failed, {:.0} s of seeds", self.took.as_secs_f64())
        } else {
            write!(out, "FAILED: seeds {:?}", self.failed)
        }
    }
}
