//! What a sandbox keeps an agent from: each attack of the operator's guide, at each level, by a
//! shell in the agent's place.

use std::{
    collections::BTreeMap,
    fs,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            fs::PermissionsExt as _,
            net::{SocketAddr, UnixListener},
        },
    },
    path::Path,
};

use serde_json::{Value, json};

use crate::support::{Server, Setup, eventually, process};

/// What a script writes if its attack succeeds.
const THROUGH: &str = "THROUGH";

/// An attack: its row in the table of `config/README.md`, and a script. `$NAME`s are what
/// [`Scene::variables`] has.
struct Attack {
    row: &'static str,
    script: &'static str,
}

#[rustfmt::skip]
const ATTACKS: &[Attack] = &[
    Attack { row: "read the database", script: "head -c 6 $DATA/greenroom.db | grep -q SQLite && echo THROUGH" },
    Attack { row: "read greenroom's configuration", script: "grep -q scripted $CONFIG && echo THROUGH" },
    Attack { row: "read another group's directory", script: "grep -q secret $DATA/work/1/file && echo THROUGH" },
    Attack { row: "read what its user keeps at home, such as keys", script: "grep -q secret $USER_HOME/.ssh/key && echo THROUGH" },
    Attack { row: "write outside of its directories", script: "echo x >>$OUTSIDE/file && echo THROUGH" },
    Attack { row: "truncate or rename a file there", script: ": >$OUTSIDE/file && echo THROUGH; mv $OUTSIDE/file $OUTSIDE/other && mv $OUTSIDE/other $OUTSIDE/file && echo THROUGH" },
    Attack { row: "connect to the API, for example to answer its own permission request", script: r#"
        perl -MSocket -e 'socket(S, PF_INET, SOCK_STREAM, 0) && connect(S, sockaddr_in($ENV{PORT}, INADDR_LOOPBACK)) && print "THROUGH\n"'
        # The same by TCP Fast Open, and as a socket of MPTCP.
        perl -MSocket -e 'socket(S, PF_INET, SOCK_STREAM, 0) && send(S, "GET", 0x20000000, sockaddr_in($ENV{PORT}, INADDR_LOOPBACK)) && print "THROUGH\n"'
        perl -MSocket -e 'socket(S, PF_INET, SOCK_STREAM, 262) && connect(S, sockaddr_in($ENV{PORT}, INADDR_LOOPBACK)) && print "THROUGH\n"'"# },
    Attack { row: "listen on the API's port, at another address", script: r#"
        perl -MSocket -e 'socket(S, PF_INET, SOCK_STREAM, 0) && bind(S, sockaddr_in($ENV{PORT}, inet_aton("127.0.0.9"))) && listen(S, 1) && print "THROUGH\n"'"# },
    Attack { row: "signal the server, its shim or another agent", script: "for pid in $SERVER $SHIM $OTHER; do kill -0 $pid && echo THROUGH; done" },
    Attack { row: "read another agent's memory and environment (ptrace)", script: "grep -q GREENROOM_RUN /proc/$OTHER/environ && echo THROUGH" },
    Attack { row: "connect to an abstract Unix socket", script: r#"perl -MSocket -e 'socket(S, PF_UNIX, SOCK_STREAM, 0) && connect(S, pack_sockaddr_un("\0$ENV{ABSTRACT}")) && print "THROUGH\n"'"# },
    Attack { row: "use rights of root, or gain them by a setuid program", script: "grep -Eq '(NoNewPrivs:.*0|CapEff:.*[1-9a-f])' /proc/self/status && echo THROUGH" },
    Attack { row: "connect to another service by its Unix socket (docker, systemd --user)", script: r#"perl -MSocket -e 'socket(S, PF_UNIX, SOCK_STREAM, 0) && connect(S, pack_sockaddr_un("$ENV{OUTSIDE}/socket")) && print "THROUGH\n"'"# },
    Attack { row: "change the mode, owner or times of a file of its user", script: "chmod 0640 $OUTSIDE/file && echo THROUGH" },
    Attack { row: "read shared memory of others (/dev/shm)", script: "grep -q secret /dev/shm/$SHARED && echo THROUGH" },
    Attack { row: "see what exists, and which processes run", script: "test -e $OUTSIDE/file && echo THROUGH; grep -q greenroom /proc/$SERVER/cmdline && echo THROUGH" },
];

/// What holds at all levels, by the shim alone; it is tested at the end of each.
const OUTLIVES: &str = "outlive its run (setsid, double fork)";

/// A server whose agents have a sandbox, and what they attack.
struct Scene {
    server: Server,
    shared: String,
    _listeners: [UnixListener; 2],
}

impl Scene {
    fn new(level: &str) -> Self {
        let server = sandboxed(level).start();
        let outside = server.home.file("outside");
        let ssh = server.home.file("user/.ssh");
        for dir in [&outside, &ssh] {
            fs::create_dir_all(dir).unwrap();
        }
        let shared = format!("greenroom-it-{}-{level}", server.pid());
        fs::write(outside.join("file"), "secret").unwrap();
        fs::write(ssh.join("key"), "secret").unwrap();
        fs::write(Path::new("/dev/shm").join(&shared), "secret").unwrap();
        let name = SocketAddr::from_abstract_name(&shared).unwrap();
        let listeners = [
            UnixListener::bind_addr(&name).unwrap(),
            UnixListener::bind(outside.join("socket")).unwrap(),
        ];
        script(&server, "secret", "echo secret >file");
        server.complete("other", "[[sh:secret]]");
        assert!(server.home.data().join("work/1/file").exists(), "{}", server.log.tail());
        server.complete("work", "first");
        Self { server, shared, _listeners: listeners }
    }

    /// What the scripts attack.
    fn variables(&self) -> BTreeMap<&str, String> {
        let home = &self.server.home;
        let shown = |path: &Path| path.display().to_string();
        let agent = agent_of(&self.server, "work");
        BTreeMap::from([
            ("DATA", shown(&home.data())),
            ("CONFIG", shown(&home.config())),
            ("USER_HOME", shown(&home.file("user"))),
            ("OUTSIDE", shown(&home.file("outside"))),
            ("PORT", home.address().port().to_string()),
            ("SERVER", self.server.pid().to_string()),
            ("SHIM", process::parent(agent).to_string()),
            ("OTHER", agent_of(&self.server, "other").to_string()),
            ("ABSTRACT", self.shared.clone()),
            ("SHARED", self.shared.clone()),
        ])
    }

    /// Whether an attack succeeds.
    fn is_open_to(&self, attack: &Attack) -> bool {
        let set = |(name, value): (&str, String)| format!("export {name}='{value}'\n");
        let variables: String = self.variables().into_iter().map(set).collect();
        script(&self.server, "attack", &format!("{variables}{}\n", attack.script));
        let task = self.server.complete("work", "[[sh:attack]][[reply:done]]");
        let text = task["text"].as_str().unwrap();
        assert!(text.ends_with("done"), "the attack {:?} did not end: {task}", attack.row);
        text.contains(THROUGH)
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        _ = fs::remove_file(Path::new("/dev/shm").join(&self.shared));
    }
}

fn sandboxed(level: &str) -> Setup {
    Setup::new()
        .text("agents.scripted", "sandbox", level)
        .set("agents.scripted", "sandbox_write", "[\"$SCRIPT_DIR\"]")
        .environment("HOME", "user")
}

/// Writes a script for the word `sh`.
fn script(server: &Server, name: &str, text: &str) {
    fs::write(server.home.script().join(name), text).unwrap();
}

/// The process that the group's current run reports: inside of bubblewrap, that of `bwrap`.
fn agent_of(server: &Server, group: &str) -> u32 {
    let runs = server.get(&format!("/v1/groups/{group}/runs?limit=1")).expect(200);
    u32::try_from(runs["items"][0]["pid"].as_u64().unwrap()).unwrap()
}

/// Runs `what` as a shell script of the agent; returns what it writes.
fn shell(server: &Server, what: &str) -> String {
    script(server, "script", what);
    server.complete("work", "[[sh:script]]")["text"].as_str().unwrap().trim().to_owned()
}

/// The living processes with the variable of this server's agents.
fn agents_of(server: &Server) -> Vec<u32> {
    let variable = format!("SCRIPT_DIR={}", server.home.script().display());
    let has_it = |pid: &u32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|own| own == variable.as_bytes())
    };
    process::all().into_iter().filter(has_it).filter(|pid| process::is_alive(*pid)).collect()
}

/// The column of a level in the table of the operator's guide, by row.
fn documented(level: &str) -> BTreeMap<String, bool> {
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/README.md");
    let guide = fs::read_to_string(guide).unwrap();
    let cells = |line: &str| line.split('|').map(|cell| cell.trim().replace('`', "")).collect();
    let mut rows = guide.lines().map(cells).skip_while(|cells: &Vec<String>| {
        cells.get(1).is_none_or(|first| first != "what an agent may try")
    });
    let head = rows.next().expect("the guide has the table");
    let column = head.iter().position(|cell| cell == level).expect("it has the level");
    let rows = rows.skip(1).take_while(|cells| cells.len() == head.len());
    rows.map(|cells| (cells[1].clone(), cells[column] == "possible")).collect()
}

/// Tries every attack, and compares with the guide.
fn attack_all(level: &str) {
    let mut scene = Scene::new(level);
    let mut found: BTreeMap<String, bool> =
        ATTACKS.iter().map(|attack| (attack.row.to_owned(), scene.is_open_to(attack))).collect();
    let server = &mut scene.server;
    server.complete("work", "[[spawn-orphans]]");
    assert!(agents_of(server).len() >= 5, "two agents and three orphans live");
    server.terminate();
    assert_eq!(server.wait_exit().code(), Some(0), "{}", server.log.tail());
    found.insert(OUTLIVES.to_owned(), !agents_of(server).is_empty());
    let expected = documented(level);
    let differs: Vec<_> = found.iter().filter(|(row, is)| expected.get(*row) != Some(is)).collect();
    assert!(differs.is_empty(), "at {level}, the guide does not say: {differs:?}");
    assert_eq!(found.len(), expected.len(), "a row without a test: {expected:?}");
}

/// C25: without a sandbox an agent has all rights of its user; only its processes end with the run.
#[test]
fn without_a_sandbox_all_attacks_succeed_that_the_guide_names() {
    attack_all("none");
}

/// C25: what Landlock stops.
#[test]
fn landlock_stops_what_the_guide_says() {
    attack_all("landlock");
}

/// C25: what bubblewrap stops.
#[test]
fn bubblewrap_stops_what_the_guide_says() {
    attack_all("bubblewrap");
}

/// C11, C14: each run has a directory for temporary files of its own, removed after it; agents of a
/// profile share a home directory; both are the owner's alone.
#[test]
fn home_and_temporary_files_are_the_agents_own() {
    for level in ["landlock", "bubblewrap"] {
        let server = sandboxed(level).text("defaults", "idle_timeout", "0s").start();
        let dirs = shell(&server, "echo a >~/kept; echo b >$TMPDIR/lost; echo $HOME $TMPDIR");
        let (home, temporary) = dirs.split_once(' ').unwrap();
        assert_eq!(Path::new(home), server.home.data().join("homes/scripted"), "{level}");
        assert!(Path::new(temporary).starts_with(server.home.data().join("work")), "{dirs}");
        let gone = || (!Path::new(temporary).exists()).then_some(());
        eventually("the end of the temporary files", &server.log, gone);
        let mode = fs::metadata(home).unwrap().permissions().mode() & 0o777;
        assert_eq!(
            (fs::read_to_string(Path::new(home).join("kept")).unwrap(), mode),
            ("a\n".into(), 0o700)
        );
        let again = shell(&server, "cat ~/kept; echo $TMPDIR");
        let (kept, other) = again.split_once('\n').unwrap();
        assert!(kept == "a" && other != temporary, "{level}: {again}");
    }
}

/// C11: a directory that the profile names in `env` is used instead, and may be written in.
#[test]
fn a_named_home_is_used() {
    for level in ["landlock", "bubblewrap"] {
        let server = sandboxed(level)
            .set(
                "agents.scripted",
                "env",
                "{ SCRIPT_DIR = \"$SCRIPT_DIR\", HOME = \"$SCRIPT_DIR\" }",
            )
            .start();
        assert_eq!(shell(&server, "echo a >~/named && cat ~/named"), "a", "{level}");
        assert!(server.home.script().join("named").exists());
        assert!(!server.home.data().join("homes").exists(), "{level}");
    }
}

/// C25: `sandbox_network` lists the TCP ports that an agent may use; an empty list leaves none.
#[test]
fn the_network_can_be_limited() {
    const PROBE: &str = r#"
        perl -MSocket -e 'for my $port (@ARGV) {
            my $made = socket(S, PF_INET, SOCK_STREAM, 0);
            print $made && connect(S, sockaddr_in($port, INADDR_LOOPBACK)) ? "open " : "shut ";
        }' "#;
    for level in ["landlock", "bubblewrap"] {
        let listeners = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        let [one, two] = listeners.each_ref().map(|it| it.local_addr().unwrap().port());
        let probe = format!("{PROBE} {one} {two}");
        for (list, expected) in
            [(None, "open open"), (Some(json!([one])), "open shut"), (Some(json!([])), "shut shut")]
        {
            let setup = sandboxed(level);
            let setup = match &list {
                Some(list) => setup.set("agents.scripted", "sandbox_network", list),
                None => setup,
            };
            let server = setup.start();
            assert_eq!(shell(&server, &probe), expected, "{level} {list:?}");
        }
    }
}

/// C25: `/v1/agents` says what holds, the log names the level of each run.
#[test]
fn the_sandbox_is_reported() {
    let server = sandboxed("landlock").start();
    server.complete("work", "x");
    let agents = server.get("/v1/agents").expect(200);
    let of = |name: &str| {
        let items = agents["items"].as_array().unwrap();
        items.iter().find(|item| item["name"] == name).unwrap()["sandbox"].clone()
    };
    let sandbox = of("scripted");
    assert_eq!((&sandbox["level"], &sandbox["problem"]), (&json!("landlock"), &Value::Null));
    let all: Vec<&Value> =
        ["holds", "missing"].iter().flat_map(|key| sandbox[*key].as_array().unwrap()).collect();
    assert!(all.contains(&&json!("files")) && all.contains(&&json!("server_port")), "{sandbox}");
    server.log.wait("the start", |line| {
        line.contains("run started") && line.contains("sandbox=landlock")
    });
}

/// C25: a sandbox that would show the data directory, or names what is missing, is not made: the
/// agent does not start, and the error says why.
#[test]
fn a_sandbox_that_cannot_hold_is_refused() {
    for level in ["landlock", "bubblewrap"] {
        for (key, path, why) in [
            ("sandbox_write", "/no/such", "sandbox_write: /no/such: No such file"),
            ("sandbox_write", "$SCRIPT_DIR/..", "which no agent in a sandbox may reach"),
            ("sandbox_read", "/no/such", "sandbox_read: /no/such: No such file"),
        ] {
            let setup = sandboxed(level).set("agents.scripted", key, format_args!("[{path:?}]"));
            let server = setup.start();
            let task = server.turn("work", "x");
            let message = task["error"]["message"].as_str().unwrap_or_default();
            assert!(message.contains(why), "{level}, {key} {path}: {task}");
        }
    }
}

/// C25: `bwrap` that is missing stops the start, and no agent runs without it.
#[test]
fn a_missing_bubblewrap_is_an_error() {
    let setup = sandboxed("bubblewrap").environment("PATH", "/nowhere");
    let home = setup.home();
    let checked = crate::support::server::run(&home, &["check-config"]);
    assert_eq!(checked.0, 0, "the server starts without it: {}", checked.1);
    assert!(
        checked.1.contains("warning: agents.scripted: sandbox: bwrap was not"),
        "{}",
        checked.1
    );
    let server = Server::start(home);
    let agents = server.get("/v1/agents").expect(200).to_string();
    assert!(agents.contains("bwrap was not found in the server's PATH (/nowhere)"), "{agents}");
    let task = server.turn("work", "x");
    let message = task["error"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("install bubblewrap"), "{task}");
}
