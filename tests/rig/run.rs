//! One seed from the first start to the verdict: the server's lives one after another, the drain,
//! and the reading of the final state.

use std::{
    sync::atomic::Ordering,
    thread::{self, Scope},
    time::{Duration, Instant},
};

use greenroom_test_support::{
    Home, Journal, Log, poll, process,
    random::Random,
    server::{self, under},
};
use rusqlite::Connection;
use rustix::process::Signal;
use serde_json::json;

use crate::{
    Result,
    check::{self, Violation},
    collect,
    history::{History, Injected, text},
    home::{self, note},
    load,
    plan::{Fault, Form, Life, Plan},
    process::{marked, wait_gone},
    reader,
    server::{PATIENCE, Server},
    stage::{Ask, Stage},
    strike::{died_at_start, strike},
};

/// The longest time until every group is idle (I12): a full queue of turns that hang.
const DRAIN: Duration = Duration::from_secs(120);

/// How long the last life has load.
const LOADED: Duration = Duration::from_millis(400);

const POLL: Duration = Duration::from_millis(20);

/// The result of a seed.
pub struct Outcome {
    pub violations: Vec<Violation>,
    pub history: History,
    pub home: Home,
    pub took: Duration,
}

/// Runs a seed.
///
/// # Errors
///
/// The rig itself failed; there is no verdict on the server.
pub fn play(seed: u64, form: Form) -> Result<Outcome> {
    let start = Instant::now();
    let plan = Plan::new(seed, form);
    let home = home::create(&plan)?;
    let stage = Stage::new(plan, home);
    let played = thread::scope(|scope| {
        for group in &stage.plan.groups {
            scope.spawn(|| load::call(&stage, group));
            scope.spawn(|| reader::follow(&stage, &group.name));
        }
        scope.spawn(|| load::meddle(&stage));
        let played = lives(&stage, scope).and_then(|()| last_life(&stage));
        stage.calm.store(true, Ordering::SeqCst);
        stage.over.store(true, Ordering::SeqCst);
        played
    });
    let with_path = |err| format!("{err} (in {})", stage.home.path().display());
    played.map_err(with_path)?;
    let mut history = std::mem::take(&mut *stage.record());
    history.journal = Journal::new(stage.home.script(), Log::default()).events();
    history.witness = witness(&stage.plan);
    let violations = check::check(&history);
    Ok(Outcome { violations, history, home: stage.home, took: start.elapsed() })
}

/// Runs all lives that end by a fault.
fn lives<'scope>(stage: &'scope Stage, scope: &'scope Scope<'scope, '_>) -> Result<()> {
    for (number, life) in (1..).zip(&stage.plan.lives) {
        note(&stage.home, "server-start", number)?;
        stage.life.store(number, Ordering::SeqCst);
        let mut server = Server::start(&stage.home, number, Some(&life.fault))?;
        let mut random = Random::new(stage.plan.seed, &format!("life {number}"));
        let sights = collect::first_sights(stage, &mut server);
        stage.record().sights.extend(sights);
        if let Some(address) = server.wait_ready()? {
            stage.set_address(Some(address));
            thread::scope(|scope| {
                scope.spawn(|| reader::loiter(stage, &mut random, life.slow_readers));
                if let Some(audit) = collect::audit(stage) {
                    stage.record().audits.push(audit);
                }
                if life.second_server {
                    second_server(stage, number);
                }
                let proof = strike(stage, &mut server, &life.fault);
                weigh(stage, &server);
                // The callers learn that it is gone only after its end.
                server.process.kill();
                stage.set_address(None);
                stage.record().injected.push(Injected {
                    life: number,
                    fault: life.fault.to_string(),
                    proof: proof?,
                });
                Result::Ok(())
            })?;
        } else {
            died_at_start(stage, &mut server, number, &life.fault);
        }
        ended(stage, scope, life, number)?;
    }
    Ok(())
}

/// Records the peak memory of all servers.
fn weigh(stage: &Stage, server: &Server) {
    let memory = process::memory(server.process.pid(), "VmHWM").unwrap_or(0);
    let mut record = stage.record();
    record.memory = record.memory.max(memory);
}

/// F26: another server on the same data refuses to start, and reports why.
fn second_server(stage: &Stage, life: usize) {
    match under(&["timeout", "20"], &stage.home, &["serve"]).output() {
        // 124: it still ran at the timeout. A signal: the fault's kill reaches only the first
        // server.
        Ok(output) if output.status.success() || output.status.code() == Some(124) => {
            let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
            // The first server may have died by its fault, and then nothing keeps the second out.
            if stage.address().is_some() && stage.life() == life && output.status.success() {
                stage.record().wrong.push(format!("a second server served: {stderr}"));
            }
        }
        Ok(_) => {}
        Err(err) => stage.record().wrong.push(format!("no second server: {err}")),
    }
}

/// Checks the end of a life: no process of it is left, and the database is sound.
fn ended<'scope>(
    stage: &'scope Stage,
    scope: &'scope Scope<'scope, '_>,
    life: &Life,
    number: usize,
) -> Result<()> {
    note(&stage.home, "server-end", number)?;
    let left = marked(&stage.home.data());
    let wait = move || {
        let orphans = wait_gone(&stage.home.data(), |one| left.contains(one));
        let found = orphans.iter().map(|one| format!("after life {number}: {one:?}"));
        stage.record().orphans.extend(found);
    };
    if life.at_once {
        // The next start has to handle them, and their 5 seconds keep running.
        scope.spawn(wait);
    } else {
        wait();
    }
    verify(stage, number);
    Ok(())
}

/// I13: `greenroom verify` finds nothing, and neither does SQLite.
fn verify(stage: &Stage, life: usize) {
    if !stage.home.file("data/greenroom.db").exists() {
        // The server was killed before it created one.
        return;
    }
    let (code, output) = server::verify(&stage.home, &[]);
    if code != 0 && !output.contains("no such table") {
        stage.record().damage.push(format!("after life {life}: verify: {output}"));
    }
}

/// Runs a life without faults: callers repeat unanswered requests, all groups become idle and are
/// read.
fn last_life(stage: &Stage) -> Result<()> {
    let number = stage.plan.lives.len() + 1;
    note(&stage.home, "server-start", number)?;
    stage.life.store(number, Ordering::SeqCst);
    let mut server = Server::start(&stage.home, number, None)?;
    let sights = collect::first_sights(stage, &mut server);
    stage.record().sights.extend(sights);
    let Some(address) = server.wait_ready()? else {
        let logged = server.logged();
        stage.record().stuck.push(format!("the last life did not start: {logged}"));
        return Ok(());
    };
    stage.set_address(Some(address));
    let audit = collect::audit(stage).ok_or("the tasks cannot be read in the last life")?;
    stage.record().audits.push(audit);
    // Some more load, in a life without faults.
    thread::sleep(LOADED);
    stage.calm.store(true, Ordering::SeqCst);
    rest(stage);
    let audit = collect::audit(stage).ok_or("the tasks cannot be read in the end")?;
    stage.record().audits.push(audit);
    for group in &stage.plan.groups {
        let found = collect::collect(stage, &group.name)?;
        readers_arrive(stage, &group.name, found.frames.last().map_or(0, |frame| frame.seq));
        stage.record().groups.insert(group.name.clone(), found);
    }
    runs_left_nothing(stage);
    weigh(stage, &server);
    process::signal(server.process.pid(), Signal::TERM);
    let ended = server.process.wait_exit(PATIENCE);
    if ended.and_then(|status| status.code()) != Some(0) {
        stage.record().stuck.push(format!("SIGTERM at rest: the server ended with {ended:?}"));
    }
    drop(server);
    stage.set_address(None);
    note(&stage.home, "server-end", number)?;
    let orphans = wait_gone(&stage.home.data(), |_| true);
    let found = orphans.iter().map(|one| format!("after the last life: {one:?}"));
    stage.record().orphans.extend(found);
    verify(stage, number);
    let database = Connection::open(stage.home.file("data/greenroom.db"))?;
    let check: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
    if check != "ok" {
        stage.record().damage.push(format!("integrity_check: {check}"));
    }
    Ok(())
}

/// Waits until every group is idle; groups that wait for a decision get one.
fn rest(stage: &Stage) {
    let client = stage.client();
    let mut random = Random::new(stage.plan.seed, "rest");
    let start = Instant::now();
    loop {
        load::answer_permissions(&client, &mut random);
        let mut busy = Vec::new();
        for group in &stage.plan.groups {
            let path = format!("/v1/groups/{}", group.name);
            let shown = client.json(&path).unwrap_or_default();
            match text(&shown, "status") {
                "idle" | "archived" if shown["queue_length"] == 0 => continue,
                "held" | "paused" | "degraded" => {
                    client.send(&Ask::post(format!("{path}/resume"), json!({})));
                }
                _ => {}
            }
            busy.push(shown);
        }
        // The callers may still repeat unanswered requests.
        let asking = stage.record().exchanges.last().map_or(0, |last| last.answered);
        if busy.is_empty() && asking + 300_000 < stage.now() {
            return;
        }
        if DRAIN < start.elapsed() {
            let found = busy.iter().map(|shown| format!("not idle after {DRAIN:?}: {shown}"));
            return stage.record().stuck.extend(found);
        }
        thread::sleep(POLL);
    }
}

/// Waits until the reader of a group reaches its last frame.
fn readers_arrive(stage: &Stage, group: &str, last_seq: u64) {
    let arrived = poll(PATIENCE, || {
        let record = stage.record();
        let last = record.seen.iter().rev().find(|seen| seen.group == group)?;
        (last_seq <= last.seq).then_some(())
    });
    if arrived.is_none() {
        let stuck = format!("the reader of {group} never reached frame {last_seq}");
        stage.record().stuck.push(stuck);
    }
}

/// I10: every live process belongs to a live run.
fn runs_left_nothing(stage: &Stage) {
    let alive: Vec<String> = {
        let record = stage.record();
        let runs = record.groups.values().flat_map(|group| &group.runs);
        runs.filter(|run| run["ended_at"].is_null()).map(|run| text(run, "id").into()).collect()
    };
    let orphans = wait_gone(&stage.home.data(), |one| !alive.contains(&one.run));
    let found = orphans.iter().map(|one| format!("outlived its run: {one:?}"));
    stage.record().orphans.extend(found);
}

/// Returns the witness, and the stop reasons that the faults of this run excuse.
fn witness(plan: &Plan) -> Option<(String, Vec<&'static str>)> {
    let group = plan.groups.iter().find(|group| group.witness)?;
    let mut excuses = vec!["_server_restart"];
    if plan.has(|fault| matches!(fault, Fault::Terminate { .. } | Fault::Stop { .. })) {
        excuses.push("_process_exited");
    }
    let storage = |fault: &Fault| {
        matches!(fault, Fault::Full { .. } | Fault::SyncError { .. } | Fault::Locked { .. })
    };
    if plan.has(storage) {
        excuses.push("_storage");
    }
    // A turn's time passes while the server is stopped.
    if plan.has(|fault| matches!(fault, Fault::Stop { .. } | Fault::Locked { .. })) {
        excuses.push("_deadline");
    }
    if plan.has(|fault| matches!(fault, Fault::Descriptors { .. })) {
        excuses.extend(["agent_start_failed", "_process_exited"]);
    }
    Some((group.name.clone(), excuses))
}
