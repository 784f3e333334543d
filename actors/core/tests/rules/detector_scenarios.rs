//! A group whose agent compacts within its turns, while several detectors report over two pipes.

use std::collections::BTreeMap;

use greenroom_core::{
    CompactionSignal, CompactionStatus, Continuity, Details, EffectiveSettings, Event, Fact, Group,
    Json, Limits, Lineage, Now, OnInterrupt, Origin, PermissionPolicy, PromptReply, Provenance,
    Recorded, RetryPolicy, RunId, SessionId, Settings, SignalKind, Source, StopReason, Task,
    TaskId, Work,
};
use uuid::Uuid;

const RUN: RunId = RunId(Uuid::from_u128(1));

/// What an agent does in several turns, and which detectors report it.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The attempts to compact, turn by turn.
    pub turns: Vec<Vec<Attempt>>,
    /// Whether each compaction leads to another session of the agent's own.
    pub rotates: bool,
    /// What ACP shows, if anything.
    pub acp: Option<Acp>,
    /// Whether and when `_meta.hermes` names another session.
    pub hermes_meta: HermesMeta,
    /// What stderr shows, if anything.
    pub stderr: Option<Stderr>,
}

/// How one attempt to compact ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// The context is compacted.
    Done,
    /// The agent reports this end; the context stays.
    Unsuccessful(SignalKind),
    /// It starts, and the agent starts it again without reporting its end.
    Restarted,
    /// It starts, and the agent reports no end.
    Silent,
}

/// What ACP shows.
#[derive(Clone, Copy, Debug)]
pub struct Acp {
    /// Whether each compaction has a key.
    pub keys: bool,
    /// Whether ACP shows the start.
    pub starts: bool,
    /// Whether `completed` comes twice.
    pub repeats_completion: bool,
    /// Whether ACP shows unsuccessful attempts too.
    pub shows_unsuccessful: bool,
}

/// When `_meta.hermes` names another session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HermesMeta {
    /// Never.
    Silent,
    /// After each compaction.
    Each,
    /// Once, at the end of a turn, for the last compaction; and again in the next turn.
    AtEnd,
    /// Likewise, and it names the session in force at the turn's start as the previous one.
    Spans,
}

/// What stderr shows.
#[derive(Clone, Copy, Debug)]
pub struct Stderr {
    /// Whether its lines name sessions.
    pub ids: bool,
    /// Whether the completion names the compacted session, and not the one after it.
    pub names_old: bool,
    /// Whether the start is shown.
    pub starts: bool,
    /// By how many turns a line may be late; 0: it comes before the next prompt is sent.
    pub late_turns: usize,
}

/// One event that greenroom reads.
#[derive(Clone, Debug)]
enum Reading {
    Start,
    Settle,
    Acp(CompactionSignal),
    HermesMeta(Provenance),
    Stderr(CompactionSignal),
}

/// Two pipes. Each line of stderr has the least and the most messages of stdout that are read
/// before it.
pub struct Pipes {
    stdout: Vec<Reading>,
    stderr: Vec<(Reading, usize, usize)>,
}

/// The group after some reading.
#[derive(Clone, Debug)]
pub struct Reader {
    group: Group,
    ids: u128,
    rotations: u64,
    /// The pipes in the order of reading: `o` for stdout, `e` for stderr.
    path: String,
}

impl PartialEq for Reader {
    fn eq(&self, other: &Self) -> bool {
        (&self.group, self.ids, self.rotations) == (&other.group, other.ids, other.rotations)
    }
}

impl Scenario {
    /// Returns the detectors of each completed compaction.
    fn reporters(&self) -> Vec<Vec<Source>> {
        let mut all = Vec::new();
        for turn in &self.turns {
            let done = turn.iter().filter(|attempt| **attempt == Attempt::Done).count();
            for number in 1..=done {
                let hermes_meta = match self.hermes_meta {
                    HermesMeta::Silent => false,
                    HermesMeta::Each => self.rotates,
                    HermesMeta::AtEnd | HermesMeta::Spans => self.rotates && number == done,
                };
                let mut sources = Vec::new();
                sources.extend(self.acp.map(|_| Source::Acp));
                sources.extend(hermes_meta.then_some(Source::HermesMeta));
                sources.extend(self.stderr.map(|_| Source::HermesStderr));
                all.push(sources);
            }
        }
        all.sort();
        all
    }

    /// Returns what the agent writes to the two pipes.
    pub fn pipes(&self) -> Pipes {
        let (mut stdout, mut stderr): (Vec<Reading>, Vec<(Reading, usize)>) =
            (Vec::new(), Vec::new());
        let (mut starts, mut hermes, mut keys) = (Vec::new(), 0, 0);
        for (turn, attempts) in self.turns.iter().enumerate() {
            stdout.push(Reading::Start);
            starts.push(stdout.len());
            let at_end =
                self.rotates && matches!(self.hermes_meta, HermesMeta::AtEnd | HermesMeta::Spans);
            let first = hermes;
            if at_end && hermes > 0 {
                stdout.push(Reading::HermesMeta(provenance(hermes, None)));
            }
            for attempt in attempts {
                keys += 1;
                let next = hermes + u32::from(self.rotates && *attempt == Attempt::Done);
                stdout.extend(self.acp.into_iter().flat_map(|acp| acp.readings(*attempt, keys)));
                let lines = self.stderr.map(|stderr| stderr.readings(*attempt, hermes, next));
                stderr.extend(lines.into_iter().flatten().map(|reading| (reading, turn)));
                if next != hermes && self.hermes_meta == HermesMeta::Each {
                    stdout.push(Reading::HermesMeta(provenance(next, Some(hermes))));
                }
                hermes = next;
            }
            if at_end && hermes > first {
                let previous =
                    if self.hermes_meta == HermesMeta::Spans { first } else { hermes - 1 };
                stdout.push(Reading::HermesMeta(provenance(hermes, Some(previous))));
            }
            stdout.push(Reading::Settle);
        }
        let late_turns = self.stderr.map_or(0, |stderr| stderr.late_turns);
        let end = stdout.len();
        let late = |turn: usize| starts.get(turn + late_turns + 1).map_or(end, |start| start - 1);
        let stderr = stderr.into_iter().map(|(reading, turn)| (reading, starts[turn], late(turn)));
        Pipes { stdout, stderr: stderr.collect() }
    }

    /// Reads the pipes in every possible order. Returns the number of orders, or the first that
    /// failed.
    ///
    /// Orders that lead to the same state continue as one.
    pub fn read_in_every_order(&self) -> Result<u64, String> {
        let pipes = self.pipes();
        let mut heads = BTreeMap::from([((0, 0), vec![(Reader::new(self.rotates), 1)])]);
        let mut orders = 0;
        while let Some(((out, err), readers)) = heads.pop_first() {
            for (reader, times) in readers {
                if (out, err) == (pipes.stdout.len(), pipes.stderr.len()) {
                    reader.check(self).map_err(|why| self.blame(&reader, &why))?;
                    orders += times;
                }
                for from_stderr in [false, true] {
                    let Some(reading) = pipes.next(out, err, from_stderr) else { continue };
                    let mut reader = reader.clone();
                    reader.path.push(if from_stderr { 'e' } else { 'o' });
                    reader.read(reading).map_err(|why| self.blame(&reader, &why))?;
                    let step = usize::from(from_stderr);
                    let place = heads.entry((out + 1 - step, err + step)).or_default();
                    match place.iter_mut().find(|(known, _)| *known == reader) {
                        Some((_, known)) => *known += times,
                        None => place.push((reader, times)),
                    }
                }
            }
        }
        Ok(orders)
    }

    /// Reads the pipes in one order: each of `turns` chooses the next pipe, if both can be read.
    pub fn read_in_order(&self, mut turns: impl Iterator<Item = bool>) -> Result<(), String> {
        let pipes = self.pipes();
        let (mut out, mut err, mut reader) = (0, 0, Reader::new(self.rotates));
        while (out, err) != (pipes.stdout.len(), pipes.stderr.len()) {
            let wanted = turns.next().unwrap_or(false);
            let from_stderr = pipes.next(out, err, wanted).map_or(!wanted, |_| wanted);
            let reading = pipes.next(out, err, from_stderr).ok_or("neither pipe can be read")?;
            reader.path.push(if from_stderr { 'e' } else { 'o' });
            reader.read(reading).map_err(|why| self.blame(&reader, &why))?;
            let step = usize::from(from_stderr);
            (out, err) = (out + 1 - step, err + step);
        }
        reader.check(self).map_err(|why| self.blame(&reader, &why))
    }

    fn blame(&self, reader: &Reader, why: &str) -> String {
        let (mut out, mut err, pipes) = (0, 0, self.pipes());
        let readings = reader.path.chars().map(|pipe| {
            let place = if pipe == 'e' { &mut err } else { &mut out };
            *place += 1;
            let place = *place - 1;
            if pipe == 'e' { &pipes.stderr[place].0 } else { &pipes.stdout[place] }
        });
        let readings: Vec<String> = readings.map(Reading::brief).collect();
        let all: Vec<_> = reader
            .group
            .compactions()
            .map(|known| {
                (known.status, known.sources.clone(), known.key.clone(), known.lineage.clone())
            })
            .collect();
        format!("{why}\n  in {self:?}\n  read {}\n  known {all:?}", readings.join(" "))
    }
}

impl Pipes {
    fn next(&self, out: usize, err: usize, from_stderr: bool) -> Option<&Reading> {
        if from_stderr {
            let (reading, earliest, _) = self.stderr.get(err)?;
            return (*earliest <= out).then_some(reading);
        }
        let waits = self.stderr[err..].iter().any(|(_, _, latest)| *latest <= out);
        self.stdout.get(out).filter(|_| !waits)
    }
}

impl Acp {
    fn readings(self, attempt: Attempt, key: u32) -> Vec<Reading> {
        let key = self.keys.then(|| format!("k{key}"));
        let reading = |kind| {
            let (key, lineage, details) = (key.clone(), Lineage::default(), Details::default());
            Reading::Acp(CompactionSignal { source: Source::Acp, kind, key, lineage, details })
        };
        let ends = match attempt {
            Attempt::Done if self.repeats_completion => vec![SignalKind::Completed; 2],
            Attempt::Done => vec![SignalKind::Completed],
            Attempt::Unsuccessful(kind) if self.shows_unsuccessful => vec![kind],
            Attempt::Unsuccessful(_) | Attempt::Restarted | Attempt::Silent => return Vec::new(),
        };
        let start = self.starts.then_some(SignalKind::Started);
        start.into_iter().chain(ends).map(reading).collect()
    }
}

impl Stderr {
    fn readings(self, attempt: Attempt, before: u32, after: u32) -> Vec<Reading> {
        let named = |number: u32| self.ids.then(|| format!("h{number}"));
        let reading = |kind, before, either: Option<String>| {
            let given = either.as_ref().map(named_only);
            let lineage = Lineage { before, after: None, either, given };
            let (key, details) = (None, Details::default());
            Reading::Stderr(CompactionSignal {
                source: Source::HermesStderr,
                kind,
                key,
                lineage,
                details,
            })
        };
        let start = self.starts.then(|| reading(SignalKind::Started, named(before), None));
        let end = match attempt {
            Attempt::Done if self.names_old => {
                Some(reading(SignalKind::Completed, None, named(before)))
            }
            Attempt::Done => Some(reading(SignalKind::Completed, None, named(after))),
            Attempt::Unsuccessful(kind) => Some(reading(kind, None, None)),
            Attempt::Restarted | Attempt::Silent => None,
        };
        start.into_iter().chain(end).collect()
    }
}

/// Returns the form in which a line gives a session's name.
fn named_only(name: &String) -> Json {
    Json::write(&serde_json::json!({ "name": name })).unwrap_or_else(|err| unreachable!("{err}"))
}

fn provenance(current: u32, previous: Option<u32>) -> Provenance {
    let named = |number: u32| format!("h{number}");
    let given = Json::write(&named(current)).unwrap_or_else(|err| unreachable!("{err}"));
    let compacted = previous.is_some();
    Provenance { current: named(current), previous: previous.map(named), compacted, given }
}

impl Reading {
    fn brief(&self) -> String {
        match self {
            Self::Start => "START".into(),
            Self::Settle => "SETTLE".into(),
            Self::Acp(signal) => format!("acp:{:?}:{:?}", signal.kind, signal.key),
            Self::HermesMeta(given) => format!("meta:{:?}>{}", given.previous, given.current),
            Self::Stderr(signal) => {
                let Lineage { before, either, .. } = &signal.lineage;
                format!("err:{:?}:{before:?}/{either:?}", signal.kind)
            }
        }
    }
}

impl Reader {
    fn new(rotates: bool) -> Self {
        let group = Group::new(Settings::default());
        let mut reader = Self { group, ids: 10, rotations: 0, path: String::new() };
        reader.start();
        let provenance = rotates.then(|| provenance(0, None));
        let (session, continuity) = (SessionId("s".into()), Continuity::New);
        reader.apply(Event::AgentReady {
            run: RUN,
            pid: 1,
            session,
            continuity,
            provenance,
            is_forgetful: false,
            prompts: None,
            loss: None,
        });
        reader.settle();
        reader.rotations = 0;
        reader
    }

    fn apply(&mut self, event: Event) {
        let limits = Limits {
            turn_ms: 1,
            compaction_ms: 1,
            idle_ms: 1,
            permission_ms: 1,
            retry_base_ms: 1,
            queue_max: 9,
            queue_bytes_max: 999,
        };
        let settings = EffectiveSettings {
            limits,
            auto_compact: 0.0,
            retry: RetryPolicy::Never,
            on_interrupt: OnInterrupt::Auto,
            permissions: PermissionPolicy::default(),
            compaction: None,
            has_detectors: true,
            is_draining: false,
            has_permission_room: true,
        };
        let ids = &mut self.ids;
        let mut fresh = || {
            *ids += 1;
            // The first id is the run's.
            Uuid::from_u128(if *ids == 12 { 1 } else { *ids })
        };
        let step = self.group.apply(event, Now::default(), &settings, &mut fresh);
        let step = step.unwrap_or_else(|rejected| unreachable!("{rejected}"));
        let rotates = |fact: &&Recorded| matches!(fact.fact, Fact::SegmentStarted { .. });
        self.rotations += step.facts.iter().filter(rotates).count() as u64;
    }

    fn start(&mut self) {
        self.ids += 1;
        let prompt = Json::parse("[]".into()).unwrap_or_else(|err| unreachable!("{err}"));
        let work = Work::Turn { prompt };
        let task = Task::new(TaskId(Uuid::from_u128(self.ids)), work, Origin::Api);
        self.apply(Event::Submitted(Box::new(task)));
        self.apply(Event::SlotGranted);
    }

    fn settle(&mut self) {
        let id = self.group.attempt().map_or(0, |turn| turn.prompt_id);
        let reply = PromptReply::Stopped { stop_reason: StopReason::EndTurn, tokens: None };
        self.apply(Event::PromptAnswered { run: RUN, id, reply, response: None });
    }

    fn read(&mut self, reading: &Reading) -> Result<(), String> {
        let count = self.group.state().compacting.count;
        match reading.clone() {
            Reading::Start => self.start(),
            Reading::Settle => self.settle(),
            Reading::Acp(signal) => {
                self.apply(Event::Signalled { run: RUN, signal: Box::new(signal) });
            }
            Reading::HermesMeta(provenance) => {
                self.apply(Event::ProvenanceGiven { run: RUN, provenance })
            }
            Reading::Stderr(signal) => {
                let (line, signal) = ("line".into(), Box::new(signal));
                self.apply(Event::StderrMatched { run: RUN, line, signal });
            }
        }
        let active = self.group.compactions().filter(|known| known.is_active()).count();
        if active > usize::from(!matches!(reading, Reading::Settle)) {
            return Err(format!("AM-25: {active} active after {}", reading.brief()));
        }
        if self.group.state().compacting.count < count {
            return Err("AM-23: the count fell".into());
        }
        Ok(())
    }

    /// AM-29: each compaction is one record with all its detectors, one count and one rotation.
    fn check(&self, scenario: &Scenario) -> Result<(), String> {
        let done = scenario.reporters();
        let completed = self.group.compactions();
        let completed = completed.filter(|known| known.status == CompactionStatus::Completed);
        let mut reported: Vec<Vec<Source>> = completed
            .map(|known| {
                let mut sources = known.sources.clone();
                sources.sort();
                sources
            })
            .collect();
        reported.sort();
        let (count, rotations) = (self.group.state().compacting.count, self.rotations);
        let all = done.len() as u64;
        if (reported.len() as u64, count, rotations) != (all, all, all) {
            return Err(format!("AM-29: {all} done, {reported:?}, {count} counted, {rotations}"));
        }
        // A report that spans several compactions of a turn belongs to none of them alone.
        let spans = scenario.spans();
        if reported != done && !spans {
            return Err(format!("AM-29: completed are {reported:?}, done are {done:?}"));
        }
        let attempts: usize = scenario.turns.iter().map(Vec::len).sum();
        let all = self.group.compactions().count();
        if all > attempts && !spans {
            return Err(format!("AM-29: {attempts} attempts, {all} records"));
        }
        let current = self.group.state().provenance().map(|known| known.current.clone());
        let last =
            (scenario.rotates && scenario.names_hermes()).then(|| format!("h{}", done.len()));
        if last.is_some() && current != last {
            return Err(format!("AM-13: {current:?} is in force, not {last:?}"));
        }
        Ok(())
    }
}

impl Scenario {
    /// Whether hermes reports several compactions at once.
    fn spans(&self) -> bool {
        let several = |turn: &Vec<Attempt>| {
            turn.iter().filter(|attempt| **attempt == Attempt::Done).count() > 1
        };
        self.hermes_meta == HermesMeta::Spans && self.turns.iter().any(several)
    }

    /// Whether a detector names the session that continues after each compaction.
    fn names_hermes(&self) -> bool {
        let stderr = self.stderr.is_some_and(|lines| lines.ids && lines.starts && !lines.names_old);
        self.hermes_meta != HermesMeta::Silent || stderr
    }
}
