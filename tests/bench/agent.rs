//! The benchmark's ACP agent on stdio: as fast as possible, so that it does not limit the
//! measurement. A prompt's text is a command:
//!
//! - `empty`: answers at once
//! - `stream N BYTES`: writes N message chunks, each a line of exactly BYTES bytes, then answers
//! - `stamp`: writes the machine's monotonic time in nanoseconds, and answers
//! - `flood BYTES`: writes such lines to stdout and stderr without end
//! - `hang`: writes its process id, and never answers
//!
//! With the argument `crash` it exits at once.

use std::{
    env,
    error::Error,
    fs::File,
    io::{self, BufRead as _, Write as _},
    os::fd::AsFd as _,
    process, thread,
};

use rustix::time::{ClockId, clock_gettime};
use serde_json::Value;

/// It resumes sessions, as an agent that could restore none would not be stopped when it is idle.
const INITIALIZED: &str = concat!(
    r#"{"protocolVersion":1,"agentCapabilities":"#,
    r#"{"sessionCapabilities":{"resume":{}}}}"#,
);
const HEAD: &str = concat!(
    r#"{"jsonrpc":"2.0","method":"session/update","params":{"sessionId":"bench","update":"#,
    r#"{"sessionUpdate":"agent_message_chunk","content":{"type":"text","text":""#,
);
const TAIL: &str = "\"}}}}\n";
/// The size of one write: the agent should wait for the reader, never the reader for the agent.
const WRITE_BYTES: usize = 128 << 10;

fn main() -> Result<(), Box<dyn Error>> {
    if env::args().nth(1).is_some_and(|argument| argument == "crash") {
        process::exit(1);
    }
    let mut out = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    for line in io::stdin().lock().lines() {
        let line: Value = serde_json::from_str(&line?)?;
        let result = match line["method"].as_str() {
            Some("initialize") => INITIALIZED,
            Some("session/new") => r#"{"sessionId":"bench"}"#,
            Some("session/resume") => "{}",
            Some("session/prompt") => {
                let text = line["params"]["prompt"][0]["text"].as_str().unwrap_or_default();
                if !play(text, &mut out)? {
                    continue;
                }
                r#"{"stopReason":"end_turn"}"#
            }
            _ => continue,
        };
        let answer = format!("{{\"jsonrpc\":\"2.0\",\"id\":{},\"result\":{result}}}\n", line["id"]);
        out.write_all(answer.as_bytes())?;
    }
    Ok(())
}

/// Performs a prompt's command; returns `false` if the prompt gets no answer.
fn play(prompt: &str, out: &mut File) -> Result<bool, Box<dyn Error>> {
    let mut words = prompt.split(' ');
    match words.next() {
        Some("stream") => {
            let mut numbers = words.map_while(|word| word.parse().ok());
            let (count, bytes) = (numbers.next(), numbers.next());
            stream(count.ok_or("stream N BYTES")?, bytes.ok_or("stream N BYTES")?, out)?;
        }
        Some("stamp") => {
            let now = clock_gettime(ClockId::Monotonic);
            let ns = i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec);
            out.write_all(format!("{HEAD}{ns}{TAIL}").as_bytes())?;
        }
        Some("flood") => {
            let bytes = words.next().and_then(|word| word.parse().ok()).ok_or("flood BYTES")?;
            thread::spawn(move || -> io::Result<()> {
                let noise = format!("{}\n", "x".repeat(bytes)).repeat(WRITE_BYTES / bytes);
                loop {
                    io::stderr().write_all(noise.as_bytes())?;
                }
            });
            loop {
                stream(WRITE_BYTES, bytes, out)?;
            }
        }
        Some("hang") => {
            out.write_all(format!("{HEAD}pid {}{TAIL}", process::id()).as_bytes())?;
            return Ok(false);
        }
        _ => {}
    }
    Ok(true)
}

/// Writes `count` lines of `bytes` bytes each, without the line feed.
fn stream(count: usize, bytes: usize, out: &mut File) -> io::Result<()> {
    let text = "x".repeat((bytes + 1).saturating_sub(HEAD.len() + TAIL.len()));
    let line = format!("{HEAD}{text}{TAIL}");
    let lines = WRITE_BYTES.div_ceil(line.len()).min(count);
    let block = line.repeat(lines);
    for _ in 0..count / lines.max(1) {
        out.write_all(block.as_bytes())?;
    }
    out.write_all(&block.as_bytes()[..count % lines.max(1) * line.len()])
}
