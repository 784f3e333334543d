//! The effect of one group on the others: start latencies of healthy groups at a steady pace, alone
//! and beside a disturber, in turn, in one run (I15).

use std::{
    hint,
    net::SocketAddr,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use greenroom_test_support::poll;
use serde_json::{Value, json};

use crate::{
    Result, Scale,
    http::{self, Connection},
    pace,
    server::{FAILING, PANICS, setup, start_build},
    table::{Line, ms, quantile, ratio},
};

const GROUPS: usize = 16;
/// The interval of each group's turns.
const EVERY: Duration = Duration::from_millis(50);
/// The time between two groups whose actors panic from their first report on.
const PANIC_EVERY: Duration = Duration::from_millis(500);
const POLL: Duration = Duration::from_millis(10);
const PATIENCE: Duration = Duration::from_secs(60);
/// The agent's two threads, and the server's thread that reads it.
const BURNING: usize = 3;
const P99_RATIO_MAX: f64 = 1.2;

/// The load beside the healthy groups.
#[derive(Clone, Copy)]
enum Disturber {
    /// Busy threads outside of the server, as many as a flood keeps busy: the effect of the
    /// machine's scheduler alone.
    Burn,
    /// An agent that writes to stdout and stderr as fast as it can.
    Flood,
    /// Groups whose actors panic at each output of their agent, one after another.
    Panics,
    /// An agent that exits without output and is started repeatedly.
    Crashes,
}

use Disturber::{Burn, Crashes, Flood, Panics};

/// The phases of a round; the healthy groups are alone in the first and the last.
#[rustfmt::skip]
const PHASES: [(&str, &[Disturber]); 7] = [
    ("nothing",                        &[]),
    ("busy threads outside the server", &[Burn]),
    ("a flooding agent",               &[Flood]),
    ("a group actor that panics",      &[Panics]),
    ("an agent in a crash loop",       &[Crashes]),
    ("all three",                      &[Flood, Panics, Crashes]),
    ("nothing, again",                 &[]),
];

/// From POST to the agent's receipt of the prompt, median and p99.
pub fn run(scale: &Scale) -> Result<Vec<Line>> {
    let server =
        start_build(FAILING, setup().environment("FAILPOINT", &format!("group={PANICS}")))?;
    let address = server.address();
    let names = AtomicUsize::new(0);
    // The first turns start the agents.
    pace::starts(address, GROUPS, EVERY, scale.phase)?;
    let mut latencies = PHASES.map(|_| Vec::new());
    for _ in 0..scale.runs {
        for ((_, disturbers), latencies) in PHASES.iter().zip(&mut latencies) {
            latencies.extend(phase(scale, address, disturbers, &names)?);
        }
    }
    latencies.iter_mut().for_each(|phase| phase.sort_by(f64::total_cmp));
    let mut alone = [&*latencies[0], &latencies[PHASES.len() - 1]].concat();
    alone.sort_by(f64::total_cmp);
    let figures = |sorted: &[f64]| format!("{} · {}", ms(quantile(sorted, 0.5)), p99(sorted));
    let barred =
        |disturbers: &[Disturber]| !disturbers.iter().all(|disturber| matches!(disturber, Burn));
    let line = |((name, disturbers), latencies): (&(&str, &[Disturber]), &Vec<f64>)| {
        let moved = quantile(latencies, 0.99) / quantile(&alone, 0.99);
        Line {
            name: format!("start latency of {GROUPS} groups beside {name}: median · p99"),
            greenroom: figures(latencies),
            limit: format!("{} alone, {} turns", figures(&alone), latencies.len()),
            ratio: ratio(quantile(latencies, 0.99), quantile(&alone, 0.99)),
            target: if barred(disturbers) { "p99 ≤ 1.20 of alone" } else { "" },
            holds: barred(disturbers).then_some(moved <= P99_RATIO_MAX),
            ..Line::default()
        }
    };
    Ok(PHASES.iter().zip(&latencies).map(line).collect())
}

fn p99(sorted: &[f64]) -> String {
    ms(quantile(sorted, 0.99))
}

/// Measures the healthy groups beside the disturbers, and waits until those are over.
fn phase(
    scale: &Scale,
    address: SocketAddr,
    disturbers: &[Disturber],
    names: &AtomicUsize,
) -> Result<Vec<f64>> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let disturb = |disturber: &Disturber| {
            let (disturber, over) = (*disturber, &over);
            scope.spawn(move || disturber.disturb(address, over, names))
        };
        let disturbing: Vec<_> = disturbers.iter().map(disturb).collect();
        let measured = pace::starts(address, GROUPS, EVERY, scale.phase);
        over.store(true, Ordering::Relaxed);
        for disturber in disturbing {
            disturber.join().map_err(|_| "a disturber panicked")??;
        }
        measured
    })
}

impl Disturber {
    fn disturb(self, address: SocketAddr, over: &AtomicBool, names: &AtomicUsize) -> Result<()> {
        let mut client = Connection::open(address)?;
        let name = |kind: &str| format!("{kind}{}", names.fetch_add(1, Ordering::Relaxed));
        match self {
            Burn => {
                thread::scope(|scope| {
                    for _ in 0..BURNING {
                        scope.spawn(|| {
                            while !over.load(Ordering::Relaxed) {
                                hint::spin_loop();
                            }
                        });
                    }
                });
                Ok(())
            }
            Flood => {
                client.exchange(&http::turn("flood", "flood 200", 0))?;
                while !over.load(Ordering::Relaxed) {
                    thread::sleep(POLL);
                }
                client.exchange(&http::request("POST", "/v1/groups/flood/stop", &json!({})))?;
                let idle = |group: &Value| group["status"] == "idle";
                wait(|| Ok(idle(&client.get("/v1/groups/flood")?)))
            }
            Panics => {
                let mut groups = Vec::new();
                while !over.load(Ordering::Relaxed) {
                    let group = name(PANICS);
                    client.exchange(&http::turn(&group, "empty", 0))?;
                    groups.push(group);
                    let next = Instant::now() + PANIC_EVERY;
                    while !over.load(Ordering::Relaxed) && Instant::now() < next {
                        thread::sleep(POLL);
                    }
                }
                // Refused while the group is being rebuilt.
                let mut delete = |group: &String| {
                    let request =
                        http::request("DELETE", &format!("/v1/groups/{group}"), &Value::Null);
                    wait(|| Ok(client.exchange(&request).is_ok()))
                };
                groups.iter().try_for_each(&mut delete)
            }
            Crashes => {
                while !over.load(Ordering::Relaxed) {
                    let group = name("crashes-");
                    let (path, crashes) =
                        (format!("/v1/groups/{group}"), json!({ "agent": "crashes" }));
                    client.exchange(&http::request("PUT", &path, &crashes))?;
                    client.exchange(&http::turn(&group, "empty", 60))?;
                }
                Ok(())
            }
        }
    }
}

fn wait(mut fits: impl FnMut() -> Result<bool>) -> Result<()> {
    let ended = poll(PATIENCE, || fits().map(|fits| fits.then_some(())).transpose());
    ended.ok_or("a disturber does not end")?
}
