//! Injects the fault of a life, and proves its effect.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use rusqlite::{Connection, OpenFlags};
use rustix::process::{Resource, Rlimit, Signal, getrlimit};

use crate::{
    Result,
    history::Injected,
    plan::Fault,
    server::{PATIENCE, Server},
    stage::Stage,
    unreadable,
};

/// How long the load may take to bring the server to its fault.
const REACHED: Duration = Duration::from_secs(30);

/// How long a fault may take to show its effect.
const EFFECT: Duration = Duration::from_millis(400);

const POLL: Duration = Duration::from_millis(20);

/// Injects the fault. Returns the proof of its effect.
pub fn strike(stage: &Stage, server: &mut Server, fault: &Fault) -> Result<Option<String>> {
    let wait = |server: &mut Server, after| server.wait_exit(after).map(|ended| ended.is_none());
    match fault {
        Fault::SyncKill { .. } => {
            server.wait_exit(REACHED)?;
            Ok(server.died_at_its_sync()?.then(|| "killed at a sync".into()))
        }
        Fault::Kill { after } => {
            Ok(wait(server, *after)?.then(|| "killed".into()).filter(|_| server.kill().is_ok()))
        }
        Fault::Terminate { after, twice } => {
            wait(server, *after)?;
            terminate(stage, server, *twice)
        }
        Fault::Stop { after, lasting } => {
            wait(server, *after)?;
            server.send(Signal::STOP)?;
            thread::sleep(*lasting);
            let stopped = server.is_stopped();
            server.send(Signal::CONT)?;
            Ok((wait(server, EFFECT)? && stopped).then(|| format!("stopped for {lasting:?}")))
        }
        Fault::Full { .. } | Fault::SyncError { .. } => fail_calls(stage, server, fault),
        Fault::Locked { after, lasting } => {
            wait(server, *after)?;
            lock_database(stage, server, *lasting)
        }
        Fault::Clock { after, seconds } => {
            wait(server, *after)?;
            set_clock(stage, server, *seconds)
        }
        Fault::WrongClock { after, years } => {
            still_there(server, *after)?;
            let year = stage.client().year();
            Ok(year.map(|year| format!("its clock was wrong by {years} years, in {year}")))
        }
        Fault::Unreadable { after } => {
            still_there(server, *after)?;
            unreadable::strike(stage, server)
        }
        Fault::Descriptors { after, spare } => {
            wait(server, *after)?;
            take_descriptors(stage, server, *spare)
        }
    }
}

fn terminate(stage: &Stage, server: &mut Server, twice: bool) -> Result<Option<String>> {
    server.send(Signal::TERM)?;
    if twice {
        server.wait_exit(Duration::from_millis(700))?;
        // The server may have ended meanwhile.
        drop(server.send(Signal::TERM));
    }
    let ended = server.wait_exit(PATIENCE)?;
    if ended.and_then(|status| status.code()) != Some(0) {
        stage.record().stuck.push(format!("SIGTERM: the server ended with {ended:?}"));
    }
    Ok(ended.map(|status| status.to_string()))
}

/// Waits until calls of the server failed.
fn fail_calls(stage: &Stage, server: &mut Server, fault: &Fault) -> Result<Option<String>> {
    let start = Instant::now();
    while server.failed_calls() == 0 && start.elapsed() < REACHED {
        if server.wait_exit(POLL)?.is_some() {
            break;
        }
    }
    let ended = server.wait_exit(3 * EFFECT)?;
    let failed = server.failed_calls();
    if matches!(fault, Fault::SyncError { .. }) && 0 < failed && ended.is_none() {
        let what = "F20: a sync failed, and the server continues";
        stage.record().stuck.push(what.to_owned());
    }
    Ok((0 < failed).then(|| match ended {
        Some(ended) => format!("{failed} calls failed, and the server ended: {ended}"),
        None => format!("{failed} calls failed"),
    }))
}

fn lock_database(stage: &Stage, server: &mut Server, lasting: Duration) -> Result<Option<String>> {
    let file = stage.home.data().join("greenroom.db");
    let other = Connection::open_with_flags(file, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    other.busy_timeout(Duration::from_secs(5))?;
    other.execute_batch("BEGIN IMMEDIATE")?;
    thread::sleep(lasting);
    other.execute_batch("ROLLBACK")?;
    still_there(server, EFFECT)?;
    Ok(Some(format!("locked for {lasting:?}")))
}

fn set_clock(stage: &Stage, server: &mut Server, seconds: i64) -> Result<Option<String>> {
    let client = stage.client();
    let before = client.clock();
    fs::write(stage.home.file("clock"), format!("{seconds:+}"))?;
    // libfaketime reads the clock's file every other second.
    let start = Instant::now();
    let mut jumped = false;
    while !jumped && start.elapsed() < 10 * EFFECT {
        still_there(server, EFFECT)?;
        let now = before.zip(client.clock());
        jumped = now.is_some_and(|(before, now)| 3_000 < now.abs_diff(before));
    }
    still_there(server, EFFECT)?;
    Ok(jumped.then(|| format!("its clock jumped by {seconds} s")))
}

fn take_descriptors(stage: &Stage, server: &mut Server, spare: u64) -> Result<Option<String>> {
    let limit = server.descriptors()? + spare;
    // Its hard limit is that of this program, which started it.
    let maximum = getrlimit(Resource::Nofile).maximum;
    let before = server.limit_descriptors(Rlimit { current: Some(limit), maximum })?;
    let taken = exhaust(stage, server, limit)?;
    still_there(server, EFFECT)?;
    server.limit_descriptors(before)?;
    still_there(server, EFFECT)?;
    Ok(taken.then(|| format!("all of {limit} descriptors were taken")))
}

/// Checks that the server outlives its fault.
fn still_there(server: &mut Server, after: Duration) -> Result<()> {
    match server.wait_exit(after)? {
        None => Ok(()),
        Some(status) => Err(format!("the server ended with {status}").into()),
    }
}

/// Opens connections until the server has no descriptor left.
fn exhaust(stage: &Stage, server: &Server, limit: u64) -> Result<bool> {
    let address = stage.address().ok_or("the server does not listen")?;
    let mut open = Vec::new();
    let start = Instant::now();
    while start.elapsed() < 5 * EFFECT {
        open.extend(std::net::TcpStream::connect_timeout(&address, EFFECT).ok());
        if limit <= server.descriptors()? {
            thread::sleep(EFFECT);
            return Ok(true);
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(false)
}

/// Handles a server that ended before it was ready: only its own fault may have ended it.
pub fn died_at_start(stage: &Stage, server: &mut Server, life: usize, fault: &Fault) -> Result<()> {
    let proof = match fault {
        Fault::SyncKill { .. } => server.died_at_its_sync()?.then(|| "at its start".to_owned()),
        Fault::SyncError { .. } | Fault::Full { .. } => {
            let failed = server.failed_calls();
            (0 < failed).then(|| format!("{failed} calls failed at its start"))
        }
        _ => None,
    };
    if proof.is_none() {
        let logged = server.logged();
        stage.record().stuck.push(format!("life {life} did not start ({fault:?}): {logged}"));
    }
    stage.record().injected.push(Injected { life, fault: fault.to_string(), proof });
    Ok(())
}
