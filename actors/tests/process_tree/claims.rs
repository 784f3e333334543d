//! A shim's reports are claims, and a name is no proof: what a run left is found all the same.

use std::{fs, process::Command};

use greenroom_actors::process::{
    child::{Launch, TreeEvent},
    proc::{Marker, Process, become_subreaper},
};

use crate::support::{
    PROCESS_TREE, UNTIL_EOF, all_gone, exited, lines, parts, proc_text, processes, runs, sh, soon,
    start, started, tree,
};

/// Returns a launch whose shim is a script: it starts a process in a session of its own, with this
/// environment alone, and then reports the end of the run to the server. Also the file to which it
/// writes the process's pid before.
fn forged_shim(dir: &tempfile::TempDir, environment: &str, launch: Launch) -> Launch {
    let file = dir.path().join("pid");
    let file = file.display();
    let escape = format!(
        "env -i {environment} setsid /bin/sh -c 'echo $$ >{file}.new; exec sleep 1000' \
             </dev/null >/dev/null &
         until grep -q . {file}.new; do sleep 0.01; done; mv {file}.new {file}
         echo '{{\"event\":\"gone\"}}' >&0; exec sleep 1000"
    );
    Launch { shim: "/bin/sh".into(), shim_args: vec!["-c".into(), escape], ..launch }
}

/// I10: the server looks for what a run left whatever its shim reports, kills it, and counts the
/// false report; also if the process has no marker, or that of another run.
#[tokio::test]
async fn a_false_report_of_the_end_is_refuted() {
    become_subreaper().expect("become a subreaper");
    let other = sh(UNTIL_EOF);
    let (stdin, _stdout, _stderr, mut other_handle) = parts(start(&other));
    let other_agent = started(&mut other_handle).await;
    let of_run = sh("");
    let marker = |marker: &Marker| format!("{}={}", marker.entry().0, marker.entry().1);
    #[rustfmt::skip]
    let cases = [
        ("no marker",                    String::new(),                      1),
        ("its run's marker",             marker(&of_run.run),                1),
        ("the marker of no run",         marker(&Marker::run("run_forged")), 1),
        ("the marker of another run",    marker(&other.run),                 0),
    ];
    for (name, environment, refuted) in cases {
        let dir = tempfile::tempdir().expect("make a directory");
        let launch = Launch { counters: Default::default(), ..of_run.clone() };
        let launch = forged_shim(&dir, &environment, launch);
        let mut child = start(&launch);
        assert_eq!(soon(child.tree.next()).await, TreeEvent::Gone, "{name}");
        let pid = fs::read_to_string(dir.path().join("pid")).expect("the process's pid");
        assert!(!fs::exists(format!("/proc/{}", pid.trim())).expect("look for it"), "{name}");
        assert_eq!(launch.counters.refuted.get(), refuted, "{name}");
        assert_eq!(launch.counters.reaped.get(), 1, "{name}");
    }
    assert!(runs(other_agent));
    drop(stdin);
    assert_eq!(soon(other_handle.next()).await, exited(3));
    assert_eq!(soon(other_handle.next()).await, TreeEvent::Gone);
    let (refuted, reaped) = (other.counters.refuted.get(), other.counters.reaped.get());
    assert_eq!((refuted, reaped), (0, 0), "an honest shim");
}

/// I10: a process with the marker of a run ends with it, although it is no descendant of its shim.
#[tokio::test]
async fn a_marked_process_from_elsewhere_ends_with_its_run() {
    let launch = sh(UNTIL_EOF);
    let mut elsewhere = Command::new("sleep")
        .arg("1000")
        .env_clear()
        .envs([launch.run.entry()])
        .spawn()
        .expect("start a process");
    let process = Process::now(elsewhere.id()).expect("find it");
    let (stdin, _stdout, _stderr, mut handle) = parts(start(&launch));
    started(&mut handle).await;
    assert!(runs(process));
    // A zombie has no marker: it may be reaped at any time.
    let reaped = std::thread::spawn(move || elsewhere.wait());
    drop(stdin);
    assert_eq!(soon(handle.next()).await, exited(3));
    assert_eq!(soon(handle.next()).await, TreeEvent::Gone);
    assert!(!runs(process));
    assert_eq!(launch.counters.refuted.get(), 1);
    reaped.join().expect("join").expect("reap it");
}

/// I10: an agent kills its shim; the process that it leaves has the name and the arguments of one.
#[tokio::test]
async fn a_process_that_calls_itself_a_shim_is_killed() {
    become_subreaper().expect("become a subreaper");
    let perl = r#"$0 = "greenroom-shim"; $| = 1; print "$$\n"; sleep 1000"#;
    let launch = sh("");
    let script = format!(
        "env -i setsid perl -e '{perl}' {} & read line; kill -KILL $PPID; sleep 1000",
        format_args!("{}={}", launch.run.entry().0, launch.run.entry().1),
    );
    let args = vec!["-c".into(), script];
    // A control group would end it whatever its name.
    let launch = Launch { shim_args: vec!["--no-cgroup".into()], ..launch };
    let (mut stdin, mut stdout, _stderr, mut handle) = parts(start(&Launch { args, ..launch }));
    let escaped = processes(&lines(&mut stdout, 1).await);
    let agent = started(&mut handle).await;
    assert_eq!(proc_text(escaped[0].pid, "comm").trim(), "greenroom-shim");
    tokio::io::AsyncWriteExt::write_all(&mut stdin, b"\n").await.expect("write");
    all_gone(&[escaped[0], agent], stdout, handle).await;
}

/// I10: only root may read a shim's environment; its arguments have the markers, too.
#[tokio::test]
async fn a_shim_shows_its_markers_in_its_arguments() {
    let launch = sh(&[PROCESS_TREE, UNTIL_EOF].concat());
    let (stdin, stdout, _stderr, mut handle) = parts(start(&launch));
    let (tree, stdout) = tree(stdout).await;
    let agent = started(&mut handle).await;
    let arguments = proc_text(crate::support::parent(agent.pid), "cmdline");
    let arguments: Vec<&str> = arguments.split('\0').collect();
    for marker in [&launch.run, &launch.data] {
        let (name, value) = marker.entry();
        assert!(arguments.contains(&&*format!("{name}={value}")), "{arguments:?}");
    }
    drop(stdin);
    assert_eq!(soon(handle.next()).await, exited(3));
    all_gone(&tree, stdout, handle).await;
}
