//! Words that make the scripted agent write what hermes writes to stderr.

/// The prefix of a line of hermes' logger.
const LOGGER: &str = "2026-11-20 10:45:06 [INFO] agent.conversation_compression:";

/// A line on stderr.
pub fn line(text: &str) -> String {
    format!("[[stderr-line:{text}]]")
}

/// A line of hermes' logger.
fn logged(text: &str) -> String {
    line(&format!("{LOGGER} {text}"))
}

/// hermes begins to compress this session.
pub fn started(session: &str) -> String {
    let counts = "messages=9 tokens=~60,027 model=fake-model focus=None";
    logged(&format!("context compression started: session={session} {counts}"))
}

/// hermes has compressed; the session is the old one or its successor.
pub fn done(session: &str) -> String {
    let counts = "messages=9->5 rough_tokens=~40,937 awaiting_real_usage=true";
    logged(&format!("context compression done: session={session} {counts}"))
}

/// The summary failed, and a marker replaces it; `done` follows.
pub fn fallback() -> String {
    line("⚠ Compression summary failed: no answer. Inserted a fallback context marker.")
}

/// The summary failed, and nothing is changed; no `done` follows.
pub fn aborted() -> String {
    line("⚠ Compression aborted: no answer. No messages were dropped.")
}

/// There was nothing to gain.
pub fn no_progress(session: &str) -> String {
    line(&format!("Compression made no progress (session={session}) — skipping boundary rewrite."))
}

/// Another process compresses this session.
pub fn skipped(session: &str) -> String {
    let holder = "holder=pid=9076:tid=139888538318528:agent=7f3a5842cc50:nonce=2902c752";
    let what = format!("compression skipped: another path is compressing session={session}");
    logged(&format!("{what} ({holder}) — returning messages unchanged to avoid session fork"))
}

/// Another process has compressed this session.
pub fn already_rotated(session: &str) -> String {
    let what = "was already rotated by another compression path";
    logged(&format!("compression skipped: session={session} {what}"))
}
