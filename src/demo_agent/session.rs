//! A session of the demo agent, stored in a file: history and pretended tokens.

use std::{
    fs::{self, File},
    io::{self, ErrorKind},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The directory of the sessions, under their cwd.
const DIRECTORY: &str = ".greenroom-demo";

/// Size of the pretended context window, in tokens.
pub const WINDOW_TOKENS: u64 = 20_000;

/// Tokens of an empty context.
const EMPTY_TOKENS: u64 = 1_200;

/// Maximum of updates kept for a replay; the oldest are dropped first.
const HISTORY_MAX: usize = 200;

pub struct Session {
    id: String,
    file: PathBuf,
    state: State,
}

#[derive(Serialize, Deserialize)]
struct State {
    turns: u64,
    compactions: u64,
    used_tokens: u64,
    history: Vec<Value>,
}

impl Session {
    /// Creates the next session of `cwd`. Its id is deterministic and differs between directories:
    /// a compaction locks the id.
    pub fn create(cwd: &Path) -> io::Result<Self> {
        let directory = cwd.join(DIRECTORY);
        fs::create_dir_all(&directory)?;
        let cwd_hash = fnv1a(cwd.as_os_str().as_bytes());
        let state = State { turns: 0, compactions: 0, used_tokens: EMPTY_TOKENS, history: vec![] };
        for number in 1_u64.. {
            let id = format!("demo-{cwd_hash:016x}-{number}");
            let file = directory.join(format!("{id}.json"));
            match File::create_new(&file) {
                Ok(_) => {
                    let session = Session { id, file, state };
                    session.save()?;
                    return Ok(session);
                }
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(ErrorKind::StorageFull.into())
    }

    /// Opens a session of `cwd`; `None` if none has this id.
    pub fn open(cwd: &Path, id: &str) -> io::Result<Option<Self>> {
        // The id becomes a file name: only ids in the form of `create` are accepted.
        if !id.starts_with("demo-") || !id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return Ok(None);
        }
        let file = cwd.join(DIRECTORY).join(format!("{id}.json"));
        match fs::read(&file) {
            Ok(bytes) => {
                let state = serde_json::from_slice(&bytes)?;
                Ok(Some(Session { id: id.to_owned(), file, state }))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns the conversation so far, as updates to replay.
    pub fn history(&self) -> &[Value] {
        &self.state.history
    }

    pub fn turns(&self) -> u64 {
        self.state.turns
    }

    pub fn used_tokens(&self) -> u64 {
        self.state.used_tokens
    }

    /// Counts a new turn; returns its number, from 1.
    pub fn begin_turn(&mut self) -> u64 {
        self.state.turns += 1;
        self.state.turns
    }

    /// Records prompt and answer of a turn, and saves the session.
    pub fn record_turn(&mut self, prompt: &str, answer: &str) -> io::Result<()> {
        let state = &mut self.state;
        state.used_tokens = WINDOW_TOKENS.min(state.used_tokens + tokens(prompt) + tokens(answer));
        state.history.push(chunk("user_message_chunk", prompt));
        state.history.push(chunk("agent_message_chunk", answer));
        let excess = state.history.len().saturating_sub(HISTORY_MAX);
        state.history.drain(..excess);
        self.save()
    }

    /// Counts a new compaction and saves the session; returns an id that is unique in the session.
    pub fn begin_compaction(&mut self) -> io::Result<String> {
        self.state.compactions += 1;
        self.save()?;
        Ok(format!("{}-compaction-{}", self.id, self.state.compactions))
    }

    /// Replaces the history by `summary`, and saves the session.
    pub fn compact(&mut self, summary: &str) -> io::Result<()> {
        self.state.history = vec![chunk("agent_message_chunk", summary)];
        self.state.used_tokens = EMPTY_TOKENS.max(self.state.used_tokens / 4);
        self.save()
    }

    /// Replaces the file atomically, so that a kill leaves the old or the new state.
    fn save(&self) -> io::Result<()> {
        let temporary = self.file.with_extension("json.new");
        fs::write(&temporary, serde_json::to_vec(&self.state)?)?;
        fs::rename(&temporary, &self.file)
    }
}

/// Returns an update with text.
pub fn chunk(kind: &str, text: &str) -> Value {
    json!({"sessionUpdate": kind, "content": {"type": "text", "text": text}})
}

/// Estimates the tokens of `text`, at least enough to be visible.
pub fn tokens(text: &str) -> u64 {
    100 + text.len() as u64 / 4
}

/// FNV-1a, 64 bits: stable across versions, unlike the standard library's hasher.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
