//! One seed from the first start to the verdict: the server's lives one after another, the drain,
//! and the reading of the final state.

use std::{
    process::Command,
    sync::atomic::Ordering,
    thread::{self, Scope},
    time::{Duration, Instant},
};

use greenroom_test_support::programs::built;
use rusqlite::Connection;
use rustix::process::Signal;
use serde_json::{Value, from_str, json};

use crate::{
    Result,
    capability::Capabilities,
    check::{self, Violation},
    collect,
    history::{History, Injected, text},
    home::Home,
    load,
    plan::{Fault, Form, Life, Plan},
    process::{marked, wait_gone},
    random::Random,
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
pub fn play(seed: u64, form: Form, capabilities: Capabilities) -> Result<Outcome> {
    let start = Instant::now();
    let plan = Plan::new(seed, form);
    let home = Home::new(&plan)?;
    let stage = Stage::new(plan, home, capabilities);
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
    history.journal = stage.home.journal()?;
    history.witness = witness(&stage.plan);
    let violations = check::check(&history);
    Ok(Outcome { violations, history, home: stage.home, took: start.elapsed() })
}

/// Runs all lives that end by a fault.
fn lives<'scope>(stage: &'scope Stage, scope: &'scope Scope<'scope, '_>) -> Result<()> {
    for (number, life) in (1..).zip(&stage.plan.lives) {
        stage.home.note(&json!({ "event": "server-start", "life": number }))?;
        stage.life.store(number, Ordering::SeqCst);
        let mut server = Server::start(&stage.home, number, Some(&life.fault))?;
        let mut random = Random::new(stage.plan.seed, &format!("life {number}"));
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
                let killed = server.kill();
                stage.set_address(None);
                stage.record().injected.push(Injected {
                    life: number,
                    fault: life.fault.to_string(),
                    proof: proof?,
                });
                killed
            })?;
        } else {
            died_at_start(stage, &mut server, number, &life.fault)?;
        }
        ended(stage, scope, life, number)?;
    }
    Ok(())
}

/// Records the peak memory of all servers.
fn weigh(stage: &Stage, server: &Server) {
    let memory = server.memory();
    let mut record = stage.record();
    record.memory = record.memory.max(memory);
}

/// F26: another server on the same data refuses to start, and reports why.
fn second_server(stage: &Stage, life: usize) {
    let second = Command::new("timeout")
        .arg("20")
        .arg(built("greenroom").unwrap_or_default())
        .args(["serve", "--config"])
        .arg(stage.home.config())
        .output();
    match second {
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
    stage.home.note(&json!({ "event": "server-end", "life": number }))?;
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
    verify(stage, number)
}

/// I13: `greenroom verify` finds nothing, and neither does SQLite.
fn verify(stage: &Stage, life: usize) -> Result<()> {
    if !stage.home.data().join("greenroom.db").exists() {
        // The server was killed before it created one.
        return Ok(());
    }
    let verified = Command::new(built("greenroom")?)
        .args(["verify", "--config"])
        .arg(stage.home.config())
        .output()?;
    if !verified.status.success() {
        let output = [verified.stdout, verified.stderr].concat();
        let output = String::from_utf8_lossy(&output).into_owned();
        if !output.contains("no such table") {
            stage.record().damage.push(format!("after life {life}: verify: {output}"));
        }
    }
    Ok(())
}

/// Runs a life without faults: callers repeat unanswered requests, all groups become idle and are
/// read.
fn last_life(stage: &Stage) -> Result<()> {
    let number = stage.plan.lives.len() + 1;
    stage.home.note(&json!({ "event": "server-start", "life": number }))?;
    stage.life.store(number, Ordering::SeqCst);
    let mut server = Server::start(&stage.home, number, None)?;
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
    server.send(Signal::TERM)?;
    let ended = server.wait_exit(PATIENCE)?;
    if ended.and_then(|status| status.code()) != Some(0) {
        stage.record().stuck.push(format!("SIGTERM at rest: the server ended with {ended:?}"));
    }
    server.kill()?;
    stage.set_address(None);
    stage.home.note(&json!({ "event": "server-end", "life": number }))?;
    let orphans = wait_gone(&stage.home.data(), |_| true);
    let found = orphans.iter().map(|one| format!("after the last life: {one:?}"));
    stage.record().orphans.extend(found);
    verify(stage, number)?;
    let database = Connection::open(stage.home.data().join("greenroom.db"))?;
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
        load::answer_permissions(stage, &client, &mut random);
        let mut busy = Vec::new();
        for group in &stage.plan.groups {
            let path = format!("/v1/groups/{}", group.name);
            let shown: Value =
                client.read(&path).and_then(|shown| from_str(&shown).ok()).unwrap_or_default();
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
    let start = Instant::now();
    let arrived = || {
        let record = stage.record();
        let last = record.seen.iter().rev().find(|seen| seen.group == group);
        last.is_some_and(|seen| last_seq <= seen.seq)
    };
    while !arrived() {
        if PATIENCE < start.elapsed() {
            let stuck = format!("the reader of {group} never reached frame {last_seq}");
            return stage.record().stuck.push(stuck);
        }
        thread::sleep(POLL);
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
