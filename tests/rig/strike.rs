//! Injects the fault of a life, and proves its effect.

use std::{fs, net::TcpStream, thread, time::Duration};

use greenroom_test_support::{poll, process};
use rusqlite::{Connection, OpenFlags};
use rustix::process::{Resource, Signal};

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

/// Injects the fault. Returns the proof of its effect.
pub fn strike(stage: &Stage, server: &mut Server, fault: &Fault) -> Result<Option<String>> {
    let wait = |server: &mut Server, after| server.process.wait_exit(after).is_none();
    match fault {
        Fault::SyncKill { .. } => {
            server.process.wait_exit(REACHED);
            Ok(server.died_at_its_sync().then(|| "killed at a sync".into()))
        }
        Fault::Kill { after } => {
            let lives = wait(server, *after);
            server.process.kill();
            Ok(lives.then(|| "killed".into()))
        }
        Fault::Terminate { after, twice } => {
            wait(server, *after);
            Ok(terminate(stage, server, *twice))
        }
        Fault::Stop { after, lasting } => {
            wait(server, *after);
            process::signal(server.process.pid(), Signal::STOP);
            thread::sleep(*lasting);
            let stopped = server.is_stopped();
            process::signal(server.process.pid(), Signal::CONT);
            Ok((wait(server, EFFECT) && stopped).then(|| format!("stopped for {lasting:?}")))
        }
        Fault::Full { .. } | Fault::SyncError { .. } => Ok(fail_calls(stage, server, fault)),
        Fault::Locked { after, lasting } => {
            wait(server, *after);
            lock_database(stage, server, *lasting)
        }
        Fault::Clock { after, seconds } => {
            wait(server, *after);
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
            wait(server, *after);
            take_descriptors(stage, server, *spare)
        }
    }
}

fn terminate(stage: &Stage, server: &mut Server, twice: bool) -> Option<String> {
    process::signal(server.process.pid(), Signal::TERM);
    // The server may have ended meanwhile.
    if twice && server.process.wait_exit(Duration::from_millis(700)).is_none() {
        process::signal(server.process.pid(), Signal::TERM);
    }
    let ended = server.process.wait_exit(PATIENCE);
    if ended.and_then(|status| status.code()) != Some(0) {
        stage.record().stuck.push(format!("SIGTERM: the server ended with {ended:?}"));
    }
    ended.map(|status| status.to_string())
}

/// Waits until calls of the server failed.
fn fail_calls(stage: &Stage, server: &mut Server, fault: &Fault) -> Option<String> {
    let is_over =
        |server: &mut Server| 0 < server.failed_calls() || server.process.exited().is_some();
    poll(REACHED, || is_over(server).then_some(()));
    let ended = server.process.wait_exit(3 * EFFECT);
    let failed = server.failed_calls();
    if matches!(fault, Fault::SyncError { .. }) && 0 < failed && ended.is_none() {
        let what = "F20: a sync failed, and the server continues";
        stage.record().stuck.push(what.to_owned());
    }
    (0 < failed).then(|| match ended {
        Some(ended) => format!("{failed} calls failed, and the server ended: {ended}"),
        None => format!("{failed} calls failed"),
    })
}

fn lock_database(stage: &Stage, server: &mut Server, lasting: Duration) -> Result<Option<String>> {
    let file = stage.home.file("data/greenroom.db");
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
    let jumped = poll(10 * EFFECT, || {
        let (before, now) = before.zip(client.clock())?;
        (3_000 < now.abs_diff(before)).then_some(())
    });
    still_there(server, EFFECT)?;
    Ok(jumped.map(|()| format!("its clock jumped by {seconds} s")))
}

fn take_descriptors(stage: &Stage, server: &mut Server, spare: u64) -> Result<Option<String>> {
    let pid = server.process.pid();
    let limit = process::descriptors(pid).len() as u64 + spare;
    process::limit(pid, Resource::Nofile, Some(limit))?;
    let taken = exhaust(stage, server, limit)?;
    still_there(server, EFFECT)?;
    // The server has raised its limit as far as it may.
    process::limit(pid, Resource::Nofile, None)?;
    still_there(server, EFFECT)?;
    Ok(taken.then(|| format!("all of {limit} descriptors were taken")))
}

/// Checks that the server outlives its fault.
fn still_there(server: &mut Server, after: Duration) -> Result<()> {
    match server.process.wait_exit(after) {
        None => Ok(()),
        Some(status) => Err(format!("the server ended with {status}").into()),
    }
}

/// Opens connections until the server has no descriptor left.
fn exhaust(stage: &Stage, server: &Server, limit: u64) -> Result<bool> {
    let address = stage.address().ok_or("the server does not listen")?;
    let mut open = Vec::new();
    let taken = poll(5 * EFFECT, || {
        open.extend(TcpStream::connect_timeout(&address, EFFECT).ok());
        (limit <= process::descriptors(server.process.pid()).len() as u64).then_some(())
    });
    if taken.is_some() {
        thread::sleep(EFFECT);
    }
    Ok(taken.is_some())
}

/// Handles a server that ended before it was ready: only its own fault may have ended it.
pub fn died_at_start(stage: &Stage, server: &mut Server, life: usize, fault: &Fault) {
    let proof = match fault {
        Fault::SyncKill { .. } => server.died_at_its_sync().then(|| "at its start".to_owned()),
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
}
