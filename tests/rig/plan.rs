//! The plan of a seed: the groups, the limits, and the end of each of the server's lives.

use std::{fmt, time::Duration};

use greenroom_test_support::{Setup, random::Random};

/// Which faults a run has.
#[derive(Clone, Copy, PartialEq)]
pub enum Form {
    /// A few lives a seed; each fault occurs in one of a few seeds.
    Quick,
    /// More lives, and also the slow faults.
    Long,
    /// Only kills at syncs, this many.
    Kills(usize),
}

/// The plan of one seed.
pub struct Plan {
    pub seed: u64,
    pub groups: Vec<Group>,
    /// The configuration that differs between seeds.
    pub setup: Setup,
    pub lives: Vec<Life>,
    /// Whether agents may hang in ways that only the escalation ends (17 s each).
    pub hangs: bool,
}

/// A group and its agent.
pub struct Group {
    pub name: String,
    /// A profile of the rig's configuration.
    pub agent: &'static str,
    /// Whether it gets plain turns only: it must continue regardless of the others (I15).
    pub witness: bool,
}

/// One life of the server, and how it ends.
pub struct Life {
    pub fault: Fault,
    /// The interval at which a random agent or its shim is killed.
    pub kills_agents: Option<Duration>,
    /// Whether the next life begins while processes of this one may still run.
    pub at_once: bool,
    /// Whether a second server is started on the same data (F26).
    pub second_server: bool,
    /// The readers that read slowly or not at all, besides the one that follows (F28, F29).
    pub slow_readers: u64,
}

/// A fault of the server.
#[derive(Clone, Debug)]
pub enum Fault {
    /// SIGKILL at the `at`-th sync of a thread (F1).
    SyncKill { at: u64 },
    /// SIGKILL at a random time.
    Kill { after: Duration },
    /// SIGTERM, possibly a second one (F4).
    Terminate { after: Duration, twice: bool },
    /// SIGSTOP, SIGCONT after this time, then SIGKILL (F2).
    Stop { after: Duration, lasting: Duration },
    /// From the `at`-th write of a thread on, this many fail with ENOSPC (F19).
    Full { at: u64, facts: u64 },
    /// The `at`-th sync of a thread fails with EIO (F20).
    SyncError { at: u64 },
    /// Another program holds the database's write lock this long (F23).
    Locked { after: Duration, lasting: Duration },
    /// The wall clock jumps (F27).
    Clock { after: Duration, seconds: i64 },
    /// The wall clock is already wrong by this much when the server starts (F27).
    WrongClock { after: Duration, years: i64 },
    /// A row of one group is unreadable.
    Unreadable { after: Duration },
    /// Only this many descriptors are left (F34).
    Descriptors { after: Duration, spare: u64 },
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::SyncKill { .. } => "kill at a sync",
            Self::Kill { .. } => "kill",
            Self::Terminate { .. } => "SIGTERM",
            Self::Stop { .. } => "SIGSTOP",
            Self::Full { .. } => "disk full",
            Self::SyncError { .. } => "sync error",
            Self::Locked { .. } => "database locked",
            Self::Clock { .. } => "clock jump",
            Self::WrongClock { .. } => "clock wrong at the start",
            Self::Unreadable { .. } => "unreadable row",
            Self::Descriptors { .. } => "no descriptors",
        })
    }
}

/// The number of fault kinds besides kills at syncs.
const OTHERS: u64 = 10;

impl Plan {
    /// The plan of a seed.
    pub fn new(seed: u64, form: Form) -> Self {
        let mut random = Random::new(seed, "plan");
        let agents = ["plain", "loads", "forgets", "rotates", "broken"];
        let mut groups = vec![Group { name: "witness".into(), agent: "plain", witness: true }];
        for number in 0..random.between(2, 4) {
            let agent = if number == 0 { "plain" } else { *random.pick(&agents) };
            groups.push(Group { name: format!("group-{number}"), agent, witness: false });
        }
        let setup = Setup::new()
            .set("limits", "running_groups", random.between(2, 5))
            .set("limits", "resident_agents", random.between(1, 6))
            .set("limits", "queue", random.between(4, 16))
            .text("defaults", "idle_timeout", random.pick::<&str>(&["0s", "100ms", "1m", "10m"]))
            .text(
                "defaults",
                "on_interrupt",
                random.pick::<&str>(&["auto", "auto", "hold", "continue"]),
            )
            .text(
                "defaults",
                "permission_policy",
                random.pick::<&str>(&["ask", "ask", "allow", "reject"]),
            )
            .set("defaults", "auto_compact", random.pick(&[0.0, 0.85]));
        let faults = faults(seed, form, &mut random);
        let lives = faults.into_iter().map(|fault| Life::new(fault, form, &mut random)).collect();
        let hangs = form == Form::Long && random.one_in(4);
        Self { seed, groups, setup, lives, hangs }
    }

    /// Whether a life of this plan has such a fault.
    pub fn has(&self, fits: impl Fn(&Fault) -> bool) -> bool {
        self.lives.iter().any(|life| fits(&life.fault))
    }
}

fn faults(seed: u64, form: Form, random: &mut Random) -> Vec<Fault> {
    let (kills, others) = match form {
        Form::Quick => (5, 2),
        Form::Long => (random.between(3, 6), random.between(2, 5)),
        Form::Kills(count) => (count as u64, 0),
    };
    let mut faults: Vec<Fault> = (0..kills).map(|_| sync_kill(random)).collect();
    for number in 0..others {
        let which = match form {
            // Neighbouring seeds cover all kinds.
            Form::Quick => (2 * seed + number) % OTHERS,
            _ => random.between(0, OTHERS - 1),
        };
        let fault = other(which, form, random);
        let place = random.between(0, faults.len() as u64);
        faults.insert(usize::try_from(place).unwrap_or(0), fault);
    }
    faults
}

fn sync_kill(random: &mut Random) -> Fault {
    // The first syncs are of the start: opening, recovery, resumed groups.
    let at = if random.one_in(5) { random.between(1, 12) } else { random.between(5, 150) };
    Fault::SyncKill { at }
}

fn other(which: u64, form: Form, random: &mut Random) -> Fault {
    let after = random.ms(100, 1_200);
    match which {
        0 => Fault::Kill { after },
        1 => Fault::Terminate { after, twice: random.one_in(3) },
        2 => {
            let long = form == Form::Long && random.one_in(4);
            let lasting = if long { random.ms(15_500, 18_000) } else { random.ms(100, 1_500) };
            Fault::Stop { after, lasting }
        }
        3 => Fault::Full { at: random.between(20, 300), facts: random.between(1, 40) },
        4 => Fault::SyncError { at: random.between(8, 100) },
        5 => {
            let long = form == Form::Long && random.one_in(4);
            let lasting = if long { random.ms(5_500, 7_000) } else { random.ms(100, 1_500) };
            Fault::Locked { after, lasting }
        }
        6 => {
            let seconds = if random.one_in(2) { 3_600 } else { -3_600 };
            Fault::Clock { after, seconds }
        }
        7 => {
            let years = if random.one_in(3) { -3 } else { 3 };
            Fault::WrongClock { after, years }
        }
        8 => Fault::Unreadable { after },
        _ => Fault::Descriptors { after, spare: random.between(0, 12) },
    }
}

impl Life {
    fn new(fault: Fault, form: Form, random: &mut Random) -> Self {
        let kills_only = matches!(form, Form::Kills(_));
        let kills_agents = !kills_only && random.one_in(3);
        Self {
            fault,
            kills_agents: kills_agents.then(|| random.ms(150, 600)),
            at_once: random.one_in(3),
            second_server: !kills_only && random.one_in(6),
            slow_readers: if random.one_in(3) { random.between(1, 20) } else { 0 },
        }
    }
}
