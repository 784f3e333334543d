//! A checker that cannot fail is worth nothing: each invariant is broken by a history, of a world
//! and, where the frames alone show it, of a stored log.

mod compactions;
mod logs;
mod queue;
mod runs;
mod starts;
mod turns;

use std::sync::Arc;

use greenroom_core::{
    AgentOutput, Fact, Kinds, Lines, OutputSummary, Place, Recorded, StopReason, TaskError, TaskId,
};
use greenroom_testing::{
    invariants::{LogFrame, Played, check_log, check_steps},
    world::{Action, TimerKind, World},
};

const CHUNK: &str = r#"{"params":{"update":{"sessionUpdate":"agent_message_chunk"}}}"#;
const BACKOFF_ENDS: Action = Action::FireTimerOf(TimerKind::Backoff);

fn play(actions: &[Action]) -> Vec<Played> {
    let mut world = World::default();
    world.trail = Some(Vec::new());
    for action in actions {
        world.play(*action).unwrap();
    }
    world.trail.unwrap()
}

/// A frame as a log stores it.
#[derive(Clone, Debug)]
struct Stored {
    place: Place,
    kind: String,
    payload: String,
}

/// Returns the frames of a history.
fn frames(steps: &[Played]) -> Vec<Stored> {
    let facts = steps.iter().flat_map(|step| &step.facts);
    let frames = facts.filter(|recorded| recorded.fact.frames() > 0).map(|recorded| {
        let payload = match &recorded.fact {
            Fact::AgentOutput(output) => output.lines.text.to_string(),
            Fact::PromptSent { session, prompt } => {
                let (session, prompt) = (&session.0, prompt.as_str());
                format!(r#"{{"params":{{"sessionId":{session:?},"prompt":{prompt}}}}}"#)
            }
            fact => fact.payload(),
        };
        Stored { place: recorded.place, kind: recorded.fact.kind().to_owned(), payload }
    });
    frames.collect()
}

fn check_frames(log: &[Stored]) -> Vec<String> {
    check_log(log.iter().map(|Stored { place, kind, payload }| LogFrame {
        place: *place,
        kind,
        payload,
    }))
}

/// The step and the place in it of the `nth` fact of a kind.
fn find(steps: &[Played], kind: &str, nth: usize) -> (usize, usize) {
    let all = steps.iter().enumerate().flat_map(|(step, played)| {
        played.facts.iter().enumerate().map(move |(at, recorded)| (step, at, recorded))
    });
    let mut found = all.filter(|(.., it)| it.fact.kind() == format!("greenroom/{kind}"));
    let (step, at, _) = found.nth(nth).unwrap_or_else(|| panic!("no {nth} {kind}"));
    (step, at)
}

fn recorded<'a>(steps: &'a mut [Played], kind: &str) -> &'a mut Recorded {
    let (step, at) = find(steps, kind, 0);
    &mut steps[step].facts[at]
}

fn fact<'a>(steps: &'a mut [Played], kind: &str) -> &'a mut Fact {
    &mut recorded(steps, kind).fact
}

fn remove(steps: &mut [Played], kind: &str) {
    let (step, at) = find(steps, kind, 0);
    steps[step].facts.remove(at);
    renumber(steps);
}

fn insert(steps: &mut [Played], after: (&str, usize), change: impl FnOnce(&mut Recorded)) {
    let (step, at) = find(steps, after.0, after.1);
    let mut copy = steps[step].facts[at].clone();
    change(&mut copy);
    steps[step].facts.insert(at + 1, copy);
    renumber(steps);
}

fn repeat(steps: &mut [Played], kind: &str) {
    insert(steps, (kind, 0), |_| {});
}

fn renumber(steps: &mut [Played]) {
    let mut seq = 1;
    for recorded in steps.iter_mut().flat_map(|step| &mut step.facts) {
        recorded.place.seq = seq;
        seq += recorded.fact.frames();
    }
}

/// Puts a fact before the `nth` one of a kind, at the same place.
fn put_before(steps: &mut [Played], kind: (&str, usize), fact: Fact) {
    let (step, at) = find(steps, kind.0, kind.1);
    let place = steps[step].facts[at].place;
    steps[step].facts.insert(at, Recorded { place, fact });
    renumber(steps);
}

/// Returns the `nth` fact of a kind.
fn nth_fact<'a>(steps: &'a mut [Played], kind: &str, nth: usize) -> &'a mut Fact {
    let (step, at) = find(steps, kind, nth);
    &mut steps[step].facts[at].fact
}

/// Undoes to the group what the step of the `nth` fact of a kind did.
fn forget(steps: &mut [Played], kind: &str, nth: usize) {
    let (step, _) = find(steps, kind, nth);
    steps[step].group = steps[step - 1].group.clone();
}

/// Changes the stop reason of the `nth` settled attempt.
fn stopped_by(steps: &mut [Played], nth: usize, by: StopReason) {
    let (step, at) = find(steps, "turn_settled", nth);
    if let Fact::TurnSettled { stop_reason, .. } = &mut steps[step].facts[at].fact {
        *stop_reason = by;
    }
}

/// Changes the first retry: its error, and how long it waits.
fn retried(steps: &mut [Played], change: impl FnOnce(&mut TaskError, &mut u64)) {
    if let Fact::TaskRetrying { error, wait_ms, .. } = fact(steps, "task_retrying") {
        change(error, wait_ms);
    }
}

fn output() -> Fact {
    let summary = OutputSummary { has_output: true, ..OutputSummary::default() };
    let (kinds, text) = (Kinds::All("session/update".into()), Arc::new(CHUNK.to_owned()));
    Fact::AgentOutput(AgentOutput { lines: Lines { count: 1, kinds, text }, summary, late: None })
}

fn other_task(steps: &[Played], nth: usize) -> TaskId {
    let (step, at) = find(steps, "task_queued", nth);
    steps[step].facts[at].fact.task().unwrap()
}

type Spoil = fn(&mut Vec<Played>);

/// The rule that the error names, and a part of its text; whether a log alone shows it; what is
/// wrong; and how it is made so.
type Row = (&'static str, bool, &'static str, Spoil);

/// A sound history, and what breaks it.
type History = (Vec<Action>, &'static [Row]);

/// Whether an error names a row's rule and has its text.
fn is_expected(expected: &str, why: &str) -> bool {
    let (rule, text) = expected.split_once(": ").unwrap_or((expected, ""));
    let (rules, message) = why.split_once(':').unwrap_or_default();
    rules.split(", ").any(|named| named == rule) && message.contains(text)
}

fn histories() -> impl Iterator<Item = History> {
    let all =
        [turns::broken(), compactions::broken(), starts::broken(), queue::broken(), runs::broken()];
    all.into_iter().flatten()
}

#[test]
fn every_invariant_is_broken_by_some_history() {
    let mut missed = Vec::new();
    for (actions, rows) in histories() {
        let sound = play(&actions);
        let (in_world, in_log) = (check_steps(&sound), check_frames(&frames(&sound)));
        assert!(in_world.is_empty() && in_log.is_empty(), "{in_world:?}\n{in_log:?}");
        for (rule, is_in_log, name, spoil) in rows {
            let mut steps = sound.clone();
            spoil(&mut steps);
            let mut ways = vec![("world", check_steps(&steps))];
            ways.extend(is_in_log.then(|| ("log", check_frames(&frames(&steps)))));
            for (way, found) in ways {
                if !found.iter().any(|why| is_expected(rule, why)) {
                    missed.push(format!("{rule}: {name} ({way}): {found:?}"));
                }
            }
        }
    }
    assert!(missed.is_empty(), "not found:\n{}", missed.join("\n"));
}
