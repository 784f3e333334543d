//! A group whose agent compacts within its turns, told of by several detectors over two pipes.

use std::collections::BTreeMap;

use greenroom_core::{
    CompactionStatus, Continuity, Details, Event, Group, Json, Lineage, OnInterrupt, Origin,
    Patience, PermissionPolicy, PromptReply, Provenance, Retry, RunId, SessionId, Settings, Sign,
    Signal, Source, StopReason, Task, TaskId, Terms, Work, Write, lock::Now,
};
use uuid::Uuid;

const RUN: RunId = RunId(Uuid::from_u128(1));

/// What an agent does in a row of turns, and who tells of it.
#[derive(Clone, Debug)]
pub struct Scene {
    /// What it tries, turn by turn.
    pub turns: Vec<Vec<Attempt>>,
    /// Whether each compaction leads to another hermes session.
    pub rotates: bool,
    /// What ACP shows, if anything.
    pub acp: Option<Acp>,
    /// Whether and when `_meta.hermes` tells of another session.
    pub meta: Meta,
    /// What stderr shows, if anything.
    pub stderr: Option<Stderr>,
}

/// What comes of one try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// The context is compacted.
    Done,
    /// It is given up with this sign; the context stays.
    Vain(Sign),
    /// It is begun, and then begun again without a word.
    Again,
    /// It is begun and nothing more is heard of it.
    Silent,
}

/// What ACP shows.
#[derive(Clone, Copy, Debug)]
pub struct Acp {
    /// Whether each has a name.
    pub keys: bool,
    /// Whether its start is shown.
    pub starts: bool,
    /// Whether `completed` comes twice.
    pub twice: bool,
    /// Whether what comes to nothing is shown as well.
    pub vain: bool,
}

/// When `_meta.hermes` tells of another session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meta {
    /// Never.
    Silent,
    /// Behind each compaction.
    Each,
    /// Once, at the end of a turn, of the last one; and again in the next turn.
    AtEnd,
    /// Likewise, and it names the session that was in force at the turn's start.
    Spans,
}

/// What stderr shows.
#[derive(Clone, Copy, Debug)]
pub struct Stderr {
    /// Whether its lines name sessions.
    pub ids: bool,
    /// Whether `done` names the session that was compacted, and not the one after it.
    pub names_old: bool,
    /// Whether `started` is seen.
    pub starts: bool,
    /// How many turns a line may come late: 0: before the next prompt is sent.
    pub lag: usize,
}

/// One thing that is read.
#[derive(Clone, Debug)]
enum Tell {
    Start,
    Settle,
    Acp(Signal),
    Meta(Provenance),
    Stderr(Signal),
}

/// Two pipes. A line of stderr is read once so many messages were, and before so many are.
pub struct Pipes {
    stdout: Vec<Tell>,
    stderr: Vec<(Tell, usize, usize)>,
}

/// What is known after some reading.
#[derive(Clone, Debug)]
pub struct Reader {
    group: Group,
    ids: u128,
    rotations: u64,
    /// How it came to that: `o` for stdout, `e` for stderr.
    path: String,
}

impl PartialEq for Reader {
    fn eq(&self, other: &Self) -> bool {
        (&self.group, self.ids, self.rotations) == (&other.group, other.ids, other.rotations)
    }
}

impl Scene {
    /// What each done compaction is told by.
    fn tellers(&self) -> Vec<Vec<Source>> {
        let mut all = Vec::new();
        for turn in &self.turns {
            let done = turn.iter().filter(|attempt| **attempt == Attempt::Done).count();
            for number in 1..=done {
                let meta = match self.meta {
                    Meta::Silent => false,
                    Meta::Each => self.rotates,
                    Meta::AtEnd | Meta::Spans => self.rotates && number == done,
                };
                let mut own = Vec::new();
                own.extend(self.acp.map(|_| Source::Acp));
                own.extend(meta.then_some(Source::HermesMeta));
                own.extend(self.stderr.map(|_| Source::HermesStderr));
                all.push(own);
            }
        }
        all.sort();
        all
    }

    /// What is written to the two pipes.
    pub fn pipes(&self) -> Pipes {
        let (mut stdout, mut stderr): (Vec<Tell>, Vec<(Tell, usize)>) = (Vec::new(), Vec::new());
        let (mut starts, mut hermes, mut keys) = (Vec::new(), 0, 0);
        for (turn, attempts) in self.turns.iter().enumerate() {
            stdout.push(Tell::Start);
            starts.push(stdout.len());
            let at_end = self.rotates && matches!(self.meta, Meta::AtEnd | Meta::Spans);
            let first = hermes;
            if at_end && hermes > 0 {
                stdout.push(Tell::Meta(provenance(hermes, None)));
            }
            for attempt in attempts {
                keys += 1;
                let next = hermes + u32::from(self.rotates && *attempt == Attempt::Done);
                stdout.extend(self.acp.into_iter().flat_map(|acp| acp.tells(*attempt, keys)));
                let told = self.stderr.map(|own| own.tells(*attempt, hermes, next));
                stderr.extend(told.into_iter().flatten().map(|tell| (tell, turn)));
                if next != hermes && self.meta == Meta::Each {
                    stdout.push(Tell::Meta(provenance(next, Some(hermes))));
                }
                hermes = next;
            }
            if at_end && hermes > first {
                let previous = if self.meta == Meta::Spans { first } else { hermes - 1 };
                stdout.push(Tell::Meta(provenance(hermes, Some(previous))));
            }
            stdout.push(Tell::Settle);
        }
        let lag = self.stderr.map_or(0, |own| own.lag);
        let end = stdout.len();
        let late = |turn: usize| starts.get(turn + lag + 1).map_or(end, |start| start - 1);
        let stderr = stderr.into_iter().map(|(tell, turn)| (tell, starts[turn], late(turn)));
        Pipes { stdout, stderr: stderr.collect() }
    }

    /// Reads the pipes in every order in which they may be read; how many orders there are, or the
    /// first one that went wrong.
    ///
    /// Orders that come to the same state are followed on together.
    pub fn read_in_every_order(&self) -> Result<u64, String> {
        let pipes = self.pipes();
        let mut heads = BTreeMap::from([((0, 0), vec![(Reader::new(self.rotates), 1)])]);
        let mut orders = 0;
        while let Some(((out, err), readers)) = heads.pop_first() {
            for (reader, times) in readers {
                if (out, err) == (pipes.stdout.len(), pipes.stderr.len()) {
                    reader.told_well(self).map_err(|why| self.blame(&reader, &why))?;
                    orders += times;
                }
                for from_stderr in [false, true] {
                    let Some(tell) = pipes.next(out, err, from_stderr) else { continue };
                    let mut reader = reader.clone();
                    reader.path.push(if from_stderr { 'e' } else { 'o' });
                    reader.read(tell).map_err(|why| self.blame(&reader, &why))?;
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

    /// Reads the pipes in one order: each of `turns` says which pipe is read next, if both may be.
    pub fn read_in_order(&self, mut turns: impl Iterator<Item = bool>) -> Result<(), String> {
        let pipes = self.pipes();
        let (mut out, mut err, mut reader) = (0, 0, Reader::new(self.rotates));
        while (out, err) != (pipes.stdout.len(), pipes.stderr.len()) {
            let wanted = turns.next().unwrap_or(false);
            let from_stderr = pipes.next(out, err, wanted).map_or(!wanted, |_| wanted);
            let tell = pipes.next(out, err, from_stderr).ok_or("neither pipe can be read")?;
            reader.path.push(if from_stderr { 'e' } else { 'o' });
            reader.read(tell).map_err(|why| self.blame(&reader, &why))?;
            let step = usize::from(from_stderr);
            (out, err) = (out + 1 - step, err + step);
        }
        reader.told_well(self).map_err(|why| self.blame(&reader, &why))
    }

    fn blame(&self, reader: &Reader, why: &str) -> String {
        let (mut out, mut err, pipes) = (0, 0, self.pipes());
        let tells = reader.path.chars().map(|pipe| {
            let place = if pipe == 'e' { &mut err } else { &mut out };
            *place += 1;
            let place = *place - 1;
            if pipe == 'e' { &pipes.stderr[place].0 } else { &pipes.stdout[place] }
        });
        let tells: Vec<String> = tells.map(Tell::brief).collect();
        let all: Vec<_> = reader
            .group
            .compactions()
            .map(|own| (own.status, own.sources.clone(), own.key.clone(), own.lineage.clone()))
            .collect();
        format!("{why}\n  in {self:?}\n  read {}\n  known {all:?}", tells.join(" "))
    }
}

impl Pipes {
    fn next(&self, out: usize, err: usize, from_stderr: bool) -> Option<&Tell> {
        if from_stderr {
            let (tell, earliest, _) = self.stderr.get(err)?;
            return (*earliest <= out).then_some(tell);
        }
        let waits = self.stderr[err..].iter().any(|(_, _, latest)| *latest <= out);
        self.stdout.get(out).filter(|_| !waits)
    }
}

impl Acp {
    fn tells(self, attempt: Attempt, key: u32) -> Vec<Tell> {
        let key = self.keys.then(|| format!("k{key}"));
        let tell = |sign| {
            let (key, lineage, details) = (key.clone(), Lineage::default(), Details::default());
            Tell::Acp(Signal { source: Source::Acp, sign, key, lineage, details })
        };
        let ends = match attempt {
            Attempt::Done if self.twice => vec![Sign::Completed; 2],
            Attempt::Done => vec![Sign::Completed],
            Attempt::Vain(sign) if self.vain => vec![sign],
            Attempt::Vain(_) | Attempt::Again | Attempt::Silent => return Vec::new(),
        };
        let start = self.starts.then_some(Sign::Started);
        start.into_iter().chain(ends).map(tell).collect()
    }
}

impl Stderr {
    fn tells(self, attempt: Attempt, before: u32, after: u32) -> Vec<Tell> {
        let named = |number: u32| self.ids.then(|| format!("h{number}"));
        let tell = |sign, before, either| {
            let lineage = Lineage { before, after: None, either };
            let (key, details) = (None, Details::default());
            Tell::Stderr(Signal { source: Source::HermesStderr, sign, key, lineage, details })
        };
        let start = self.starts.then(|| tell(Sign::Started, named(before), None));
        let end = match attempt {
            Attempt::Done if self.names_old => Some(tell(Sign::Completed, None, named(before))),
            Attempt::Done => Some(tell(Sign::Completed, None, named(after))),
            Attempt::Vain(sign) => Some(tell(sign, None, None)),
            Attempt::Again | Attempt::Silent => None,
        };
        start.into_iter().chain(end).collect()
    }
}

fn provenance(current: u32, previous: Option<u32>) -> Provenance {
    let named = |number: u32| format!("h{number}");
    let given = Json::write(&named(current)).unwrap_or_else(|err| unreachable!("{err}"));
    let compacted = previous.is_some();
    Provenance { current: named(current), previous: previous.map(named), compacted, given }
}

impl Tell {
    fn brief(&self) -> String {
        match self {
            Self::Start => "START".into(),
            Self::Settle => "SETTLE".into(),
            Self::Acp(own) => format!("acp:{:?}:{:?}", own.sign, own.key),
            Self::Meta(own) => format!("meta:{:?}>{}", own.previous, own.current),
            Self::Stderr(own) => {
                format!("err:{:?}:{:?}/{:?}", own.sign, own.lineage.before, own.lineage.either)
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
        reader.apply(Event::AgentReady { run: RUN, pid: 1, session, continuity, provenance });
        reader.settle();
        reader.rotations = 0;
        reader
    }

    fn apply(&mut self, event: Event) {
        let patience = Patience {
            turn_ms: 1,
            compaction_ms: 1,
            idle_ms: 1,
            permission_ms: 1,
            retry_base_ms: 1,
            queue_max: 9,
            queue_bytes_max: 999,
        };
        let terms = Terms {
            patience,
            auto_compact: 0.0,
            retry: Retry::Never,
            on_interrupt: OnInterrupt::Auto,
            permissions: PermissionPolicy::default(),
            compaction: None,
            listens: true,
        };
        let ids = &mut self.ids;
        let mut fresh = || {
            *ids += 1;
            // The first is the run's.
            Uuid::from_u128(if *ids == 12 { 1 } else { *ids })
        };
        let step = self.group.apply(event, Now::default(), &terms, &mut fresh);
        let step = step.unwrap_or_else(|rejected| unreachable!("{rejected}"));
        let rotates = |write: &&Write| matches!(write, Write::SegmentStarted { .. });
        self.rotations += step.writes.iter().filter(rotates).count() as u64;
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
        let id = self.group.turn().map_or(0, |turn| turn.prompt_id);
        let reply = PromptReply::Stopped { stop_reason: StopReason::EndTurn, tokens: None };
        self.apply(Event::PromptAnswered { run: RUN, id, reply });
    }

    fn read(&mut self, tell: &Tell) -> Result<(), String> {
        let count = self.group.head().compacting.count;
        match tell.clone() {
            Tell::Start => self.start(),
            Tell::Settle => self.settle(),
            Tell::Acp(signal) => {
                self.apply(Event::Signalled { run: RUN, signal: Box::new(signal) });
            }
            Tell::Meta(provenance) => self.apply(Event::ProvenanceGiven { run: RUN, provenance }),
            Tell::Stderr(signal) => {
                let (line, signal) = ("line".into(), Box::new(signal));
                self.apply(Event::StderrMatched { run: RUN, line, signal });
            }
        }
        let active = self.group.compactions().filter(|own| own.is_active()).count();
        if active > usize::from(!matches!(tell, Tell::Settle)) {
            return Err(format!("AM-25: {active} active after {}", tell.brief()));
        }
        if self.group.head().compacting.count < count {
            return Err("AM-23: the count fell".into());
        }
        Ok(())
    }

    /// AM-29: each compaction is one entity, with all who told of it, one count, one rotation.
    fn told_well(&self, scene: &Scene) -> Result<(), String> {
        let done = scene.tellers();
        let completed = self.group.compactions();
        let completed = completed.filter(|own| own.status == CompactionStatus::Completed);
        let mut told: Vec<Vec<Source>> = completed
            .map(|own| {
                let mut sources = own.sources.clone();
                sources.sort();
                sources
            })
            .collect();
        told.sort();
        let (count, rotations) = (self.group.head().compacting.count, self.rotations);
        let all = done.len() as u64;
        if (told.len() as u64, count, rotations) != (all, all, all) {
            return Err(format!("AM-29: {all} done, {told:?}, {count} counted, {rotations}"));
        }
        // What hermes says of a turn with several is then about none of them alone.
        let spans = scene.spans();
        if told != done && !spans {
            return Err(format!("AM-29: completed are {told:?}, done are {done:?}"));
        }
        let tries: usize = scene.turns.iter().map(Vec::len).sum();
        let all = self.group.compactions().count();
        if all > tries && !spans {
            return Err(format!("AM-29: {tries} tries, {all} entities"));
        }
        let current = self.group.head().provenance.as_ref().map(|known| known.current.clone());
        let last = (scene.rotates && scene.names_hermes()).then(|| format!("h{}", done.len()));
        if last.is_some() && current != last {
            return Err(format!("AM-13: {current:?} is in force, not {last:?}"));
        }
        Ok(())
    }
}

impl Scene {
    /// Whether hermes tells once of several compactions.
    fn spans(&self) -> bool {
        let several = |turn: &Vec<Attempt>| {
            turn.iter().filter(|attempt| **attempt == Attempt::Done).count() > 1
        };
        self.meta == Meta::Spans && self.turns.iter().any(several)
    }

    /// Whether anything names the session that goes on after each compaction.
    fn names_hermes(&self) -> bool {
        let stderr = self.stderr.is_some_and(|own| own.ids && own.starts && !own.names_old);
        self.meta != Meta::Silent || stderr
    }
}
