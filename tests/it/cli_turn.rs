//! `greenroom turn` and `compact` follow a task to its outcome while the server, or a proxy in
//! front of it, fails and recovers.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    process::{Child, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use crate::support::{Log, Server, server::greenroom};

/// How the proxy handles one request.
#[derive(Clone, Copy, Debug)]
enum Handling {
    /// Forwards the request and the answer.
    Pass,
    /// Forwards the request, and all of the answer but its last bytes.
    Cut,
    /// Forwards the request, and this number of bytes of the answer.
    CutAfter(usize),
    /// Answers with this status, and forwards nothing.
    Answer(u16),
    /// Closes the connection, and forwards nothing.
    HangUp,
}

/// A proxy in front of the server. It accepts one request per connection, and handles each by the
/// next item of a list, which it repeats.
struct Proxy {
    address: SocketAddr,
    /// The request lines.
    requests: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    fn start(server: SocketAddr, handlings: Vec<Handling>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let requests: Arc<Mutex<Vec<String>>> = Arc::default();
        let recorded = requests.clone();
        thread::spawn(move || {
            for (client, handling) in listener.incoming().zip(handlings.iter().copied().cycle()) {
                let recorded = recorded.clone();
                thread::spawn(move || {
                    serve_connection(client.unwrap(), server, handling, &recorded)
                });
            }
        });
        Self { address, requests }
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

/// Handles one connection.
fn serve_connection(
    mut client: TcpStream,
    server: SocketAddr,
    handling: Handling,
    requests: &Mutex<Vec<String>>,
) {
    let mut reader = BufReader::new(client.try_clone().unwrap());
    let (mut head, mut length) = (Vec::<String>::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().unwrap();
        }
        if line.trim().is_empty() {
            break;
        }
        head.push(line);
    }
    requests.lock().unwrap().push(format!("{handling:?} {}", head[0].trim()));
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let mut left = usize::MAX;
    let withheld = match handling {
        Handling::Pass => 0,
        Handling::Cut => 9,
        Handling::CutAfter(bytes) => {
            left = bytes;
            0
        }
        Handling::Answer(status) => {
            let answer = format!("HTTP/1.1 {status} No\r\ncontent-length: 0\r\n\r\n");
            return drop(client.write_all(answer.as_bytes()));
        }
        Handling::HangUp => return,
    };
    let Ok(mut stream) = TcpStream::connect(server) else { return };
    let head = head.concat() + "Connection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&body).unwrap();
    // The last bytes are held back until more follow.
    let (mut held, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        held.extend_from_slice(&buffer[..count]);
        let ready = held.len().saturating_sub(withheld).min(left);
        left -= ready;
        if client.write_all(&held[..ready]).is_err() {
            return;
        }
        held.drain(..ready);
        if left == 0 {
            break;
        }
    }
    drop(client.shutdown(Shutdown::Both));
}

/// Starts the command line against this address; its stderr goes to the log.
fn start(server: &Server, address: SocketAddr, log: &Log, arguments: &[&str]) -> Child {
    let mut command = greenroom(&server.home, arguments);
    command.env("GREENROOM_URL", format!("http://{address}"));
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    log.follow(child.stderr.take().unwrap());
    child
}

/// Waits for the exit code and the stdout.
fn end(child: Child) -> (Option<i32>, String) {
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

/// API-5: `turn` follows its task over a restart of the server, to its outcome and exit code.
#[test]
fn a_turn_is_followed_over_a_restart() {
    let mut server = Server::usual();
    let log = Log::default();
    let prompt = "[[reply:before]][[gate:never]]";
    let turn = start(&server, server.address(), &log, &["turn", "work", prompt]);
    server.journal.wait_gate("never");
    let has_text = |frame: &serde_json::Value| frame.to_string().contains(r#""text":"before""#);
    server.wait_frame("work", "the word", |frame| {
        frame["kind"] == "session/update" && has_text(frame)
    });
    server.kill();
    log.wait("a line that the server is unreachable", |line| line.contains("; trying again"));
    server.boot();
    let (code, printed) = end(turn);
    assert_eq!((code, printed.trim()), (Some(4), "before"), "{}", log.tail());
    log.wait("the outcome", |line| line.contains("interrupted"));
}

/// API-5: the command line retries temporary errors; each task is enqueued once, and each word
/// printed once.
#[test]
fn a_turn_survives_a_failing_proxy() {
    const HANDLINGS: &[Handling] = &[
        Handling::Answer(502),
        Handling::Cut,
        Handling::Pass,
        Handling::HangUp,
        Handling::Answer(504),
        Handling::Cut,
        Handling::Pass,
        Handling::Answer(503),
    ];
    let server = Server::usual();
    let mut lost_answers = 0;
    for (first, command) in [(0, "turn"), (4, "turn"), (6, "turn --json"), (5, "compact")] {
        let handlings: Vec<Handling> =
            HANDLINGS[first..].iter().chain(&HANDLINGS[..first]).copied().collect();
        let proxy = Proxy::start(server.address(), handlings);
        let log = Log::default();
        let mut arguments: Vec<&str> = command.split(' ').chain(["work"]).collect();
        if command.starts_with("turn") {
            arguments.push("[[reply:one ]][[reply:two ]][[reply:three]]");
        }
        let (code, printed) = end(start(&server, proxy.address, &log, &arguments));
        let requests = proxy.requests();
        assert_eq!(code, Some(0), "{command}: {requests:#?}\n{}", log.tail());
        match command {
            "turn" => assert_eq!(printed, "one two three\n"),
            "compact" => assert_eq!(printed, "compacted\n"),
            _ => assert!(printed.contains(r#""text":"one two three""#), "{printed}"),
        }
        lost_answers += requests.iter().filter(|line| line.starts_with("Cut POST")).count();
    }
    assert_eq!(lost_answers, 3, "accepted tasks whose answer was lost");
    let tasks = server.get("/v1/groups/work/tasks").expect(200);
    assert_eq!(tasks["items"].as_array().unwrap().len(), 4, "{tasks}");
}

/// API-5: a stream that breaks after its task has ended is resumed and printed to its end.
#[test]
fn a_turn_prints_the_whole_answer_after_a_broken_stream() {
    let server = Server::usual();
    for cut in [100, 3_000, 20_000] {
        let handlings =
            [Handling::Pass, Handling::CutAfter(cut)].into_iter().chain([Handling::Pass; 50]);
        let proxy = Proxy::start(server.address(), handlings.collect());
        let log = Log::default();
        let turn = start(&server, proxy.address, &log, &["turn", "work", "[[chunks:200:300]]"]);
        let (code, printed) = end(turn);
        assert_eq!(code, Some(0), "{}", log.tail());
        let tasks = server.get("/v1/groups/work/tasks").expect(200);
        let text = tasks["items"].as_array().unwrap().last().unwrap()["text"].clone();
        assert_eq!(printed.trim_end(), text.as_str().unwrap().trim_end(), "{cut}");
    }
}

/// API-5: a server that does not run is an immediate error, with exit code 5.
#[test]
fn a_server_that_does_not_run_is_an_immediate_error() {
    let mut server = Server::usual();
    let address = server.address();
    server.kill();
    for arguments in [&["turn", "work", "x"][..], &["compact", "work"], &["watch"], &["groups"]] {
        let log = Log::default();
        let (code, printed) = end(start(&server, address, &log, arguments));
        assert_eq!((code, printed.as_str()), (Some(5), ""), "{arguments:?}");
        log.wait("the reason", |line| line.contains("cannot reach"));
        assert_eq!(log.lines().len(), 1, "{:?}", log.lines());
    }
}
