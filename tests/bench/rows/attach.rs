//! A late reader reads a long transcript from its beginning, while another client works.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Instant,
};

use crate::{
    Result, Scale,
    database::read_blocks,
    rows::{GROUP, fill},
    server::{connect, setup, start},
    subscriber::Subscriber,
    table::{Line, median, ms, ratio},
};
use greenroom_test_support::Server;

const SHORT: &str = "short";
const OTHER: &str = "other";

/// Attaches to a long transcript and to one a tenth as long, beside a bare read of the database.
pub fn run(scale: &Scale) -> Result<Vec<Line>> {
    let server = start(setup())?;
    let mut client = connect(&server)?;
    let long = fill(&mut client, GROUP, scale.history)?;
    let short = fill(&mut client, SHORT, scale.history / 10)?;
    client.turn(OTHER, "empty")?;
    let (mut firsts, mut alls, mut shorts, mut bare) = (vec![], vec![], vec![], vec![]);
    let alone = worst_turn(&server, || {
        thread::sleep(std::time::Duration::from_millis(300));
        Ok(())
    })?;
    let beside = worst_turn(&server, || {
        for _ in 0..scale.runs {
            let (first, all) = attach(&server, GROUP, long)?;
            firsts.push(first);
            alls.push(all);
            shorts.push(attach(&server, SHORT, short)?.0);
        }
        Ok(())
    })?;
    // Once more without a neighbour: these figures count.
    let (mut quiet_firsts, mut quiet_shorts, mut quiet_alls) = (vec![], vec![], vec![]);
    for _ in 0..scale.runs {
        let (first, all) = attach(&server, GROUP, long)?;
        quiet_firsts.push(first);
        quiet_alls.push(all);
        quiet_shorts.push(attach(&server, SHORT, short)?.0);
        bare.push(read_blocks(&server.home.file("data/greenroom.db"))?);
    }
    let (first, short) = (median(quiet_firsts), median(quiet_shorts));
    let (all, bare) = (median(quiet_alls), median(bare));
    let frames = scale.history;
    Ok(vec![
        Line {
            name: format!("attach to {frames} frames: first frame"),
            greenroom: format!("{} (beside turns {})", ms(first), ms(median(firsts))),
            published: "260 ms",
            target: "≤ 5 ms",
            holds: Some(first <= 0.005),
            ..Line::default()
        },
        Line {
            name: format!("attach: first frame of {frames} against {}", frames / 10),
            greenroom: ratio(first, short),
            target: "≤ 1.5",
            holds: Some(first / short <= 1.5),
            ..Line::default()
        },
        Line {
            name: format!("attach to {frames} frames: all of it, beside a bare read"),
            greenroom: format!("{} (beside turns {})", ms(all), ms(median(alls))),
            limit: ms(bare),
            ratio: ratio(all, bare),
            published: "360 ms",
            target: "≤ 120 ms",
            holds: Some(all <= 0.12),
        },
        Line {
            name: "attach: another client's worst turn meanwhile, beside the same without".into(),
            greenroom: ms(beside),
            limit: ms(alone),
            ratio: ratio(beside, alone),
            published: "260–1,700 ms",
            target: "waits ≤ 10 ms longer",
            holds: Some(beside - alone <= 0.01),
        },
    ])
}

/// Returns the seconds to the first frame, and to the last.
fn attach(server: &Server, group: &str, last: u64) -> Result<(f64, f64)> {
    let start = Instant::now();
    let mut subscriber = Subscriber::open(server.address(), group, 0)?;
    let first = subscriber.read_to(1)? - start;
    let all = subscriber.read_to(last)? - start;
    Ok((first.as_secs_f64(), all.as_secs_f64()))
}

/// Returns the longest turn of another client during `work`.
fn worst_turn(server: &Server, work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let other = scope.spawn(|| -> Result<f64> {
            let mut client = connect(server)?;
            let mut worst = 0.0_f64;
            while !done.load(Ordering::Relaxed) {
                let start = Instant::now();
                client.turn(OTHER, "empty")?;
                worst = worst.max(start.elapsed().as_secs_f64());
            }
            Ok(worst)
        });
        let worked = work();
        done.store(true, Ordering::Relaxed);
        let worst = other.join().map_err(|_| "the other client panicked")??;
        worked.map(|()| worst)
    })
}
