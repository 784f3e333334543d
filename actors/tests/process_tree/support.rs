//! Shared by the tests of the shim: shell scripts as agents, and waits with an end.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use greenroom_actors::{
    process::{
        child::{Child, Heartbeat, Launch, TreeEvent, TreeHandle, spawn},
        proc::{Marker, Process},
    },
    profile::Rlimits,
    working_dir::WorkingDir,
};
use tokio::{io::AsyncReadExt, net::unix::pipe::Receiver, time::timeout};

/// The longest wait for an immediate event, on a busy machine.
pub const SOON: Duration = Duration::from_secs(30);
/// I10: no process outlives its run by more than 5 s; on a busy machine, by more than this.
pub const ORPHANS_MAX: Duration = Duration::from_secs(15);
/// F9: EOF comes within this time.
pub const EOF_MAX: Duration = Duration::from_secs(2);

/// All kinds of children that a plain kill of the agent would miss. Each prints its pid, and so
/// does the agent, which then runs the rest of the test's script. The marked ones exec no more, as
/// a process shows no mark during an exec.
pub const PROCESS_TREE: &str = r#"
    setsid sh -c 'echo $$; sleep 1000; :' &
    ( ( sh -c 'trap "" TERM; echo $$; while :; do sleep 1000; done' & ) & )
    ( setsid sh -c 'setsid sh -c "echo \$\$; sleep 1000; :" &' & )
    sh -c 'echo $$; exec >/dev/null; sleep 1000; :' &
    env -i setsid /bin/sh -c 'echo $$; exec sleep 1000' &
    echo $$
"#;
/// An agent that ends with its input, and one that only a signal ends.
pub const UNTIL_EOF: &str = "read line; exit 3";
pub const UNTIL_SIGNAL: &str = "sleep 1000; :";
pub const TREE_SIZE: usize = 6;

pub fn sh(script: &str) -> Launch {
    let id = uuid::Uuid::now_v7();
    Launch {
        shim: shim(),
        shim_args: Vec::new(),
        command: "/bin/sh".into(),
        args: vec!["-c".into(), script.into()],
        env: vec![("PATH".into(), "/usr/bin:/bin".into())],
        cwd: WorkingDir::open(Path::new("/")).expect("open the root"),
        umask: None,
        no_new_privs: false,
        confinement: None,
        rlimits: Rlimits::default(),
        open_files: Some(1024),
        run: Marker::run(format!("run_{id}")),
        data: Marker::data(id),
        counters: Default::default(),
    }
}

/// Returns the shim's program, which Cargo builds beside the tests.
pub fn shim() -> PathBuf {
    let test = std::env::current_exe().expect("find this program");
    let target = test.ancestors().nth(2).expect("it lies in <target>/<profile>/deps");
    target.join("examples/shim")
}

/// Starts an agent whose next heartbeat comes after the end of the test.
pub fn start(launch: &Launch) -> Child {
    let heartbeat = Heartbeat::start(Duration::from_secs(3600)).expect("start the heartbeat");
    spawn(launch.clone(), &heartbeat, ()).expect("start the shim")
}

pub fn parts(child: Child) -> (tokio::net::unix::pipe::Sender, Receiver, Receiver, TreeHandle) {
    (child.stdin, child.stdout, child.stderr, child.tree)
}

pub fn exited(code: i32) -> TreeEvent {
    TreeEvent::Exited { code: Some(code), signal: None }
}

pub fn killed(signal: i32) -> TreeEvent {
    TreeEvent::Exited { code: None, signal: Some(signal) }
}

pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(SOON, future).await.expect("the event comes in time")
}

pub async fn started(handle: &mut TreeHandle) -> Process {
    match soon(handle.next()).await {
        TreeEvent::Started { pid, start_time } => Process { pid, start_time },
        other => panic!("not started: {other:?}"),
    }
}

/// Reads a pipe to its end.
pub async fn read_all(pipe: &mut Receiver) -> String {
    let mut text = String::new();
    soon(pipe.read_to_string(&mut text)).await.expect("read to the end");
    text
}

pub async fn line(pipe: &mut Receiver) -> String {
    let mut line = Vec::new();
    // Byte by byte: the data after the line stays in the pipe.
    while let byte = soon(pipe.read_u8()).await.expect("read a line")
        && byte != b'\n'
    {
        line.push(byte);
    }
    String::from_utf8(line).expect("it is text")
}

pub async fn lines(pipe: &mut Receiver, count: usize) -> Vec<String> {
    let mut lines = Vec::new();
    while lines.len() < count {
        lines.push(line(pipe).await);
    }
    lines
}

/// Reads lines up to the line `end`, and returns those before it.
pub async fn lines_to(pipe: &mut Receiver, end: &str) -> Vec<String> {
    let mut lines = Vec::new();
    loop {
        match line(pipe).await {
            line if line == end => return lines,
            line => lines.push(line),
        }
    }
}

/// Returns the processes of [`PROCESS_TREE`], once all run.
pub async fn tree(mut stdout: Receiver) -> (Vec<Process>, Receiver) {
    let tree = processes(&lines(&mut stdout, TREE_SIZE).await);
    (tree, stdout)
}

pub fn processes(pids: &[String]) -> Vec<Process> {
    pids.iter().map(|pid| Process::now(pid.parse().expect("a pid")).expect("it runs")).collect()
}

/// Waits for EOF, the last event and the end of all processes, each in its time (I10, F9).
pub async fn all_gone(tree: &[Process], mut stdout: Receiver, mut handle: TreeHandle) {
    let last = timeout(ORPHANS_MAX, async { while handle.next().await != TreeEvent::Gone {} });
    let eof = timeout(EOF_MAX, read_all(&mut stdout));
    let (eof, last) = tokio::join!(eof, last);
    assert_eq!(eof.expect("EOF in time"), "");
    last.expect("the last event in time");
    let left: Vec<_> = tree.iter().filter(|process| runs(**process)).collect();
    assert!(left.is_empty(), "{left:?}");
}

pub async fn eventually_none_runs(tree: &[Process]) {
    let none = async {
        while tree.iter().copied().any(runs) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(ORPHANS_MAX, none).await.expect("all dead in time");
}

pub fn wait_until_none_runs(tree: &[Process]) {
    let began = Instant::now();
    while tree.iter().copied().any(runs) {
        assert!(began.elapsed() < ORPHANS_MAX, "still running");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a process exists and is no zombie.
pub fn runs(process: Process) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid));
    process.exists() && status.is_ok_and(|status| !field(&status, "State:").starts_with('Z'))
}

pub fn parent(pid: u32) -> u32 {
    field(&proc_text(pid, "status"), "PPid:").parse().expect("a pid")
}

pub fn proc_text(pid: u32, file: &str) -> String {
    fs::read_to_string(format!("/proc/{pid}/{file}")).expect("read /proc")
}

/// Returns agent and shim of a [`PROCESS_TREE`] below a server: the agent leads a group in the
/// shim's session.
pub fn agent_and_shim(tree: &[Process]) -> (Process, Process) {
    let above = |process: &Process| Process::now(parent(process.pid)).expect("find its parent");
    let is_shim = |above: &Process| proc_text(above.pid, "comm").trim() == "greenroom-shim";
    let shim = tree.iter().map(above).find(is_shim).expect("find the shim");
    let leads_in_session = |process: &&Process| {
        let status = proc_text(process.pid, "status");
        field(&status, "NSpgid:") == process.pid.to_string()
            && field(&status, "NSsid:") == shim.pid.to_string()
    };
    (*tree.iter().find(leads_in_session).expect("find the agent"), shim)
}

pub fn field(text: &str, name: &str) -> String {
    text.lines().find_map(|line| line.strip_prefix(name)).expect(name).trim().to_owned()
}

pub fn descriptors(pid: u32) -> Vec<(String, OsString)> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).expect("list descriptors");
    let mut found: Vec<_> = entries
        .map(|entry| {
            let entry = entry.expect("read one");
            let to = fs::read_link(entry.path()).expect("follow it").into_os_string();
            (entry.file_name().into_string().expect("a number"), to)
        })
        .collect();
    found.sort();
    found
}
