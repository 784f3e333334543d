//! Reports on stderr why a followed task or group does not move. Never writes to stdout.
//!
//! A thread asks the server once nothing has moved for a second, and on average sends one request a
//! second at most. The command reports each move, so that a task that moves is never asked about.

mod ask;
mod line;
mod reason;

use std::{
    env,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError},
    thread,
    time::{Duration, Instant},
};

use greenroom_actors::clock;

pub use self::ask::Subject;
use self::{ask::Round, line::Line, reason::Reason};
use super::error::INTERRUPT_EXIT;
use crate::{
    client::{Client, DEFAULT_URL},
    text::visible,
};

/// How long nothing moves before the server is asked, and the time for each request.
const QUIET: Duration = Duration::from_secs(1);

/// A terminal's line is rewritten at each full second of its reason.
const REWRITE_MS: u64 = 1_000;

/// What a command reports about its wait. Clones share one line of stderr.
#[derive(Clone)]
pub struct Waiting {
    shared: Arc<Shared>,
    quiet: Duration,
    /// How a person calls this program for the same server.
    program: Arc<str>,
}

struct Shared {
    state: Mutex<State>,
    /// Off a terminal: where lines are printed. A write may block as long as nothing reads stderr,
    /// so it is made without the lock of the state.
    plain: Option<Mutex<Line>>,
    changed: Condvar,
}

struct State {
    /// On a terminal: the line.
    line: Option<Line>,
    /// Whether the command waits for the server to report something.
    is_waiting: bool,
    /// When the server is asked next; none until something moves.
    ask_at: Option<Instant>,
    /// How often something moved. An answer to an earlier question is out of date.
    moves: u64,
    /// When something moved last, or the wait began.
    moved_at: Instant,
    /// The server is not asked before, however often something moves.
    rests_until: Option<Instant>,
    /// On a terminal: the reason that holds now, and since when.
    reason: Option<(Reason, Instant)>,
    /// Off a terminal: the reason that was printed last, while it may hold.
    printed: Option<Reason>,
    has_ended: bool,
}

/// Ends the reports when it is dropped, and removes the line.
pub struct Following(Waiting);

impl Waiting {
    /// Reports on this process's stderr.
    pub fn on_stderr(client: &Client) -> Self {
        let program = program(client.url(), env::var("GREENROOM_URL").ok().as_deref());
        Self::new(Line::stderr(), QUIET, &program)
    }

    fn new(line: Line, quiet: Duration, program: &str) -> Self {
        let (line, plain) = match line.is_live() {
            true => (Some(line), None),
            false => (None, Some(Mutex::new(line))),
        };
        let state = State {
            line,
            is_waiting: false,
            ask_at: None,
            moves: 0,
            moved_at: Instant::now(),
            rests_until: None,
            reason: None,
            printed: None,
            has_ended: false,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), plain, changed: Condvar::new() });
        Self { shared, quiet, program: program.into() }
    }

    /// Reports on `subject` in a thread until the returned value is dropped.
    pub fn follow(&self, client: &Client, subject: Subject) -> Following {
        let (waiting, client) = (self.clone(), client.clone());
        thread::spawn(move || waiting.report(&client, &subject));
        Following(self.clone())
    }

    /// The command waits from now on, unless it already does.
    pub fn begin(&self) {
        let mut state = self.lock();
        if !state.is_waiting {
            state.is_waiting = true;
            state.moved_at = Instant::now();
            state.ask_after(self.quiet);
            self.shared.changed.notify_all();
        }
    }

    /// Something moved: removes the line, and asks only after another quiet second.
    pub fn moved(&self) {
        let mut state = self.lock();
        state.forget();
        if state.is_waiting {
            state.ask_after(self.quiet);
            self.shared.changed.notify_all();
        }
    }

    /// The command does not wait any more.
    pub fn end(&self) {
        let mut state = self.lock();
        state.forget();
        (state.is_waiting, state.ask_at) = (false, None);
    }

    /// Prints a line on stderr that stays.
    pub fn say(&self, text: &str) {
        match &self.shared.plain {
            Some(plain) => lock(plain).say(text),
            None => self.lock().line.iter_mut().for_each(|line| line.say(text)),
        }
    }

    /// Lets `print` write to stdout while no line of this one's is visible. `ends_row`: whether
    /// what it printed ends with a line end.
    pub fn print<T>(&self, ends_row: bool, print: impl FnOnce() -> T) -> T {
        if self.shared.plain.is_some() {
            return print();
        }
        let mut state = self.lock();
        state.line.iter_mut().for_each(Line::clear);
        let printed = print();
        state.line.iter_mut().for_each(|line| line.printed(ends_row));
        printed
    }

    /// On Ctrl-C: removes the line, writes `words` to stderr and ends this process.
    pub fn end_on_interrupt(&self, words: String) {
        let waiting = self.clone();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
            if runtime.is_ok_and(|runtime| runtime.block_on(tokio::signal::ctrl_c()).is_ok()) {
                waiting.clear_at_once();
                eprint!("{words}");
                std::process::exit(INTERRUPT_EXIT);
            }
        });
    }

    /// Removes the line, unless a write that may block is under way.
    fn clear_at_once(&self) {
        match self.shared.state.try_lock() {
            Ok(mut state) => state.line.iter_mut().for_each(Line::clear),
            Err(TryLockError::Poisoned(state)) => {
                state.into_inner().line.iter_mut().for_each(Line::clear);
            }
            Err(TryLockError::WouldBlock) => {}
        }
    }

    /// The thread: asks and shows until the end.
    fn report(&self, client: &Client, subject: &Subject) {
        while let Some(moves) = self.wait_until_quiet() {
            let (round, begun) = (Round::new(client), Instant::now());
            let answer = round.ask(subject);
            let pause = self.quiet.saturating_mul(round.requests());
            let mut state = self.lock();
            state.rests_until = begun.checked_add(pause);
            if state.moves != moves || state.has_ended {
                state.ask_at = state.ask_at.max(state.ask_at.and(state.rests_until));
                continue;
            }
            // A group without work asks nothing of anyone: its next event wakes this thread.
            let sleeps = matches!((subject, &answer), (Subject::Group(_), Ok(None)));
            state.ask_at = if sleeps { None } else { Instant::now().checked_add(pause) };
            // A server that does not answer is reported by the command itself; the reason that it
            // gave before may not hold any more.
            let printed = match (answer, &self.shared.plain) {
                (Ok(reason), Some(_)) => state.take_in(reason),
                (Err(_), Some(_)) => None,
                (answer, None) => {
                    state.set(answer.ok().flatten());
                    None
                }
            };
            drop(state);
            if let (Some(reason), Some(plain)) = (printed, &self.shared.plain) {
                lock(plain).show(&reason.text(&self.program, clock::now()), Duration::ZERO);
            }
        }
    }

    /// Rewrites the line until the server is to be asked; returns the number of moves so far, and
    /// `None` at the end.
    fn wait_until_quiet(&self) -> Option<u64> {
        let mut state = self.lock();
        loop {
            let now = Instant::now();
            if state.has_ended {
                return None;
            }
            if state.ask_at.is_some_and(|at| at <= now) {
                return Some(state.moves);
            }
            state.rewrite(now, &self.program);
            let ask_in = state.ask_at.map(|at| at - now);
            let rewrite_in = state.reason.as_ref().map(|(_, since)| {
                let shown_ms = now.duration_since(*since).subsec_millis();
                Duration::from_millis(REWRITE_MS - u64::from(shown_ms))
            });
            state = match ask_in.into_iter().chain(rewrite_in).min() {
                Some(time) => {
                    let woken = self.shared.changed.wait_timeout(state, time);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.shared.state)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns how a person calls this program for the server at `url`, if `GREENROOM_URL` is `found`.
fn program(url: &str, found: Option<&str>) -> String {
    match found.unwrap_or(DEFAULT_URL).trim_end_matches('/') == url {
        true => "greenroom".to_owned(),
        false => format!("greenroom --url {}", visible(url)),
    }
}

impl State {
    /// Asks once nothing has moved for `quiet`, and not before the last question may be repeated.
    fn ask_after(&mut self, quiet: Duration) {
        self.ask_at = self.moved_at.checked_add(quiet).max(self.rests_until);
    }

    /// Off a terminal: makes `reason` the one that holds; returns it if it is another than before.
    fn take_in(&mut self, reason: Option<Reason>) -> Option<Reason> {
        let reason = reason.filter(|reason| !reason.is_progress());
        let is_new = self.printed != reason;
        self.printed.clone_from(&reason);
        reason.filter(|_| is_new)
    }

    /// On a terminal: makes `reason` the one that holds; the next rewrite shows it.
    fn set(&mut self, reason: Option<Reason>) {
        let is_mid_row = self.line.as_ref().is_some_and(Line::is_mid_row);
        let reason = reason.filter(|reason| !(reason.is_progress() && is_mid_row));
        self.reason = match (reason, self.reason.take()) {
            (Some(reason), Some((shown, since))) if reason == shown => Some((shown, since)),
            (Some(reason), Some(_)) => Some((reason, Instant::now())),
            (Some(reason), None) => Some((reason, self.moved_at)),
            (None, _) => {
                self.line.iter_mut().for_each(Line::clear);
                self.moved_at = Instant::now();
                None
            }
        };
    }

    /// Writes the line of a terminal with the time that the reason has held.
    fn rewrite(&mut self, now: Instant, program: &str) {
        if let (Some((reason, since)), Some(line)) = (&self.reason, &mut self.line) {
            line.show(&reason.text(program, clock::now()), now.duration_since(*since));
        }
    }

    /// The reason may not hold any more.
    fn forget(&mut self) {
        self.moves += 1;
        self.moved_at = Instant::now();
        self.reason = None;
        self.line.iter_mut().for_each(Line::clear);
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let waiting = &self.0;
        let mut state = waiting.lock();
        state.forget();
        state.has_ended = true;
        waiting.shared.changed.notify_all();
    }
}

#[cfg(test)]
pub use self::tests::Sink;

#[cfg(test)]
#[path = "waiting/tests.rs"]
mod tests;
