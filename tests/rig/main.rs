//! The fault rig: a seed's plan kills, stops and starves the real server and sets its clock while
//! callers load it; then the rig checks its whole history (I1–I16).
//!
//! ```text
//! cargo run --example rig                     the quick form: eight seeds, a few minutes
//! cargo run --example rig -- --long 17 99     these seeds in the long form
//! cargo run --example rig -- --long           a hundred fresh seeds
//! cargo run --example rig -- --kills 200      this many kills at syncs, and the counts
//! ```
//!
//! `--jobs N` seeds run at once, and `--seeds N` fresh ones are drawn. A failing seed leaves its
//! directory, and prints the command that repeats it.

mod check;
mod collect;
mod history;
mod home;
mod load;
mod plan;
mod process;
mod prompt;
mod reader;
mod run;
mod server;
mod stage;
mod strike;
mod summary;
mod unreadable;

use std::{
    env,
    error::Error,
    process::ExitCode,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{SystemTime, UNIX_EPOCH},
};

use greenroom_test_support::{programs::build, random::Random};

use crate::{plan::Form, summary::Summary};

/// An error of the rig itself ends a seed with its own message.
pub type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// The seeds of the quick form; enough for every fault to occur.
const QUICK: std::ops::RangeInclusive<u64> = 1..=8;

/// The number of fresh seeds of the long form.
const FRESH: u64 = 100;

/// The kills of one seed in the form with kills alone.
const KILLS_A_SEED: usize = 10;

/// The arguments.
struct Order {
    form: Form,
    seeds: Vec<u64>,
    jobs: usize,
}

fn main() -> ExitCode {
    match order(env::args().skip(1)).and_then(|order| run(&order)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(err) => {
            eprintln!("rig: {err}");
            ExitCode::FAILURE
        }
    }
}

fn order(mut arguments: impl Iterator<Item = String>) -> Result<Order> {
    let mut form = Form::Quick;
    let (mut seeds, mut kills, mut count) = (Vec::new(), 0_usize, FRESH);
    let mut jobs = 2;
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} wants a value"));
        match argument.as_str() {
            "--quick" => form = Form::Quick,
            "--long" => form = Form::Long,
            "--kills" => {
                kills = value()?.parse()?;
                form = Form::Kills(KILLS_A_SEED);
            }
            "--seeds" => count = value()?.parse()?,
            "--jobs" => jobs = value()?.parse()?,
            seed => seeds.push(seed.parse().map_err(|_| format!("{seed:?} is no seed"))?),
        }
    }
    if seeds.is_empty() {
        seeds = match form {
            Form::Quick => QUICK.collect(),
            Form::Long => fresh(count)?,
            Form::Kills(each) => fresh(kills.div_ceil(each) as u64)?,
        };
    }
    Ok(Order { form, seeds, jobs })
}

fn fresh(count: u64) -> Result<Vec<u64>> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
    let mut random = Random::new(u64::try_from(now % u128::from(u64::MAX))?, "seeds");
    Ok((0..count).map(|_| random.between(1, 999_999_999)).collect())
}

fn run(order: &Order) -> Result<bool> {
    build(&["--example", "scripted-agent"])?;
    let next = AtomicUsize::new(0);
    let summary = Mutex::new(Summary::default());
    thread::scope(|scope| {
        for _ in 0..order.jobs {
            scope.spawn(|| {
                while let Some(seed) = order.seeds.get(next.fetch_add(1, Ordering::SeqCst)) {
                    let played = run::play(*seed, order.form);
                    let mut summary = summary.lock().unwrap_or_else(|err| err.into_inner());
                    summary.take(*seed, order.form, played);
                }
            });
        }
    });
    let summary = summary.into_inner().unwrap_or_else(|err| err.into_inner());
    println!("{summary}");
    Ok(summary.is_clean())
}
