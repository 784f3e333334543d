//! The signals that a server gets: some stop it in order, the others must not end it.

use std::{
    fs::File,
    future::poll_fn,
    io,
    task::{Context, Poll, Waker},
};

use tokio::signal::unix::{Signal, SignalKind, signal};

const HANGUP: (SignalKind, &str) = (SignalKind::hangup(), "SIGHUP");
/// Those that stop the server, and their names.
const STOPPING: [(SignalKind, &str); 3] = [
    (SignalKind::terminate(), "SIGTERM"),
    (SignalKind::interrupt(), "SIGINT"),
    (SignalKind::quit(), "SIGQUIT"),
];
/// Those that ask for nothing, and whose default would end the server at once, with every turn.
const IGNORED: [(SignalKind, &str); 2] =
    [(SignalKind::user_defined1(), "SIGUSR1"), (SignalKind::user_defined2(), "SIGUSR2")];

/// The signals that stop the server.
pub struct Signals {
    stopping: Vec<(Signal, &'static str)>,
    /// Never awaited. The parent may have left SIGCHLD ignored; then the kernel would reap children
    /// before the server reads their exit, and a signal could reach a reused process id.
    _child: Signal,
}

impl Signals {
    /// Catches all signals; from here on a task logs those that are ignored. They are caught, not
    /// ignored, so that exec resets them to the default for agents. SIGHUP stops a server whose
    /// terminal was closed, and asks a service for nothing yet.
    pub fn catch() -> io::Result<Self> {
        let (mut stopping, mut ignored) = (STOPPING.to_vec(), IGNORED.to_vec());
        let has_terminal = File::open("/dev/tty").is_ok();
        let of_hangup = if has_terminal { &mut stopping } else { &mut ignored };
        of_hangup.push(HANGUP);
        let stopping = listen(&stopping)?;
        let mut ignored = listen(&ignored)?;
        actix_rt::spawn(async move {
            loop {
                let signal = next(&mut ignored).await;
                log::warn!(target: "greenroom", signal; "signal ignored; SIGTERM stops the server");
            }
        });
        Ok(Self { stopping, _child: signal(SignalKind::child())? })
    }

    /// Waits for a signal that stops the server; returns its name.
    pub async fn next(&mut self) -> &'static str {
        next(&mut self.stopping).await
    }

    /// Discards the signals received so far.
    pub fn drain(&mut self) {
        let mut no_waker = Context::from_waker(Waker::noop());
        for (signal, _) in &mut self.stopping {
            while signal.poll_recv(&mut no_waker).is_ready() {}
        }
    }
}

fn listen(kinds: &[(SignalKind, &'static str)]) -> io::Result<Vec<(Signal, &'static str)>> {
    kinds.iter().map(|&(kind, name)| Ok((signal(kind)?, name))).collect()
}

async fn next(signals: &mut [(Signal, &'static str)]) -> &'static str {
    poll_fn(|context| {
        let mut signals = signals.iter_mut();
        let received = signals
            .find_map(|(signal, name)| signal.poll_recv(context).is_ready().then_some(*name));
        received.map_or(Poll::Pending, Poll::Ready)
    })
    .await
}
