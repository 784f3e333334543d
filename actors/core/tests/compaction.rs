//! What detectors see of an agent's compactions, and what follows: SEEDS AM-12 to AM-31.
#![allow(clippy::unwrap_used)]

mod hand;

use greenroom_core::{
    CompactionStatus as C, Continuity, EndReason, Event, Exit, ExitReason, Expiry, Group, Recovery,
    SessionId, Sign, Signal, Source, StopReason, Strategy, Write,
};
use hand::{Hand, hermes, kinds, signal};

/// A case's name, what is told, and how many completed compactions that is.
type Told = (&'static str, Vec<(Source, Sign)>, u64);

const DETECTORS: [Source; 3] = [Source::Acp, Source::HermesMeta, Source::HermesStderr];

#[test]
fn am_21_a_start_is_active_and_counts_nothing() {
    for source in DETECTORS {
        let mut hand = Hand::in_turn();
        hand.tell(signal(source, Sign::Started, Some("h0"), None));
        let compacting = &hand.group.head().compacting;
        assert_eq!((hand.active(), hand.count()), (true, 0), "{source:?}");
        assert_eq!(compacting.last_source, Some(source));
        assert_eq!(compacting.last_started_at, Some(hand.now));
        let active = hand.group.active_compaction().unwrap();
        assert_eq!(active.lineage.before.as_deref(), Some("h0"), "{source:?}");
        assert_eq!(active.task, hand.group.current().map(|task| task.id), "{source:?}");
    }
}

#[test]
fn am_22_done_counts_and_rotates_in_one_breath() {
    let mut hand = Hand::in_turn();
    hand.tell(signal(Source::HermesStderr, Sign::Started, Some("h0"), None));
    let mut done = signal(Source::HermesStderr, Sign::Completed, None, Some("h1"));
    (done.details.messages_before, done.details.messages_after) = (Some(9), Some(5));
    let step = hand.tell(done);
    let stated = ["stderr", "compaction_ended", "segment_ended", "segment_started"];
    assert_eq!(kinds(&step.writes), stated);
    let Write::CompactionEnded(own) = &step.writes[1] else { unreachable!() };
    assert_eq!((own.from_segment, own.to_segment), (1, Some(2)));
    assert_eq!((own.details.messages_before, own.details.messages_after), (Some(9), Some(5)));
    let reason = matches!(
        step.writes[2],
        Write::SegmentEnded { segment: 1, end_reason: EndReason::Compaction }
    );
    let next = matches!(&step.writes[3], Write::SegmentStarted { segment: 2, parent: Some(1), .. });
    assert!(reason && next, "{step:?}");
    assert_eq!((hand.active(), hand.count(), hand.segment()), (false, 1, 2));
    assert_eq!(hand.group.head().compacting.last_completed_at, Some(hand.now));
    assert_eq!(hand.group.head().provenance.as_ref().unwrap().current, "h1");
}

/// AM-23: only a `done` counts, and only once.
#[test]
fn am_23_what_counts() {
    use {Sign::*, Source::*};
    #[rustfmt::skip]
    let cases: [Told; 12] = [
        ("started",                 vec![(Acp, Started)],                                            0),
        ("done without started",    vec![(HermesStderr, Completed)],                                 1),
        ("done by two",             vec![(HermesStderr, Completed), (Acp, Completed)],               1),
        ("done by three",           vec![(HermesStderr, Completed), (HermesMeta, Completed), (Acp, Completed)], 1),
        ("done by one, twice",      vec![(HermesStderr, Completed), (HermesStderr, Completed)],      2),
        ("failed",                  vec![(Acp, Started), (Acp, Failed)],                             0),
        ("cancelled",               vec![(Acp, Started), (Acp, Cancelled)],                          0),
        ("skipped",                 vec![(HermesStderr, Started), (HermesStderr, Skipped)],          0),
        ("no progress",             vec![(HermesStderr, Started), (HermesStderr, Noop)],             0),
        ("noted alone",             vec![(Acp, Noted)],                                              0),
        ("noted of one that runs",  vec![(Acp, Started), (Acp, Noted), (Acp, Completed)],            1),
        ("four tries",              vec![(HermesStderr, Started), (HermesStderr, Failed), (HermesStderr, Started), (HermesStderr, Noop),
                                      (HermesStderr, Started), (HermesStderr, Started), (HermesStderr, Completed)], 1),
    ];
    for (name, signals, count) in cases {
        let mut hand = Hand::in_turn();
        let begun = hand.segment();
        signals.iter().for_each(|(source, sign)| {
            hand.signal(*source, *sign);
        });
        assert_eq!((hand.count(), u64::from(hand.segment() - begun)), (count, count), "{name}");
        hand.answer(StopReason::EndTurn);
        assert_eq!((hand.count(), hand.active()), (count, false), "{name}");
    }
}

/// AM-23: claude says `completed` twice under one id.
#[test]
fn am_23_done_twice_under_one_name_counts_once() {
    let mut hand = Hand::in_turn();
    for (key, sign) in [("a", Sign::Started), ("a", Sign::Completed), ("b", Sign::Completed)] {
        for _ in 0..2 {
            let named = Signal { key: Some(key.into()), ..signal(Source::Acp, sign, None, None) };
            hand.tell(named);
        }
    }
    assert_eq!((hand.count(), hand.segment()), (2, 3));
}

/// AM-23, AM-13: which words of `_meta.hermes` count, and which rotate.
#[test]
fn am_23_another_hermes_session_counts_only_if_a_compaction_led_to_it() {
    let reset = Some(EndReason::Reset);
    let compaction = Some(EndReason::Compaction);
    #[rustfmt::skip]
    let cases = [
        ("the same",               Some("h0"), hermes("h0", None, false),       None,       0),
        ("the same, as compacted", Some("h0"), hermes("h0", Some("g"), true),   None,       0),
        ("another",                Some("h0"), hermes("h1", None, false),       reset,      0),
        ("another, compacted",     Some("h0"), hermes("h1", Some("h0"), true),  compaction, 1),
        ("first seen",             None,       hermes("h1", None, false),       None,       0),
        ("first seen, split",      None,       hermes("h1", None, true),        compaction, 1),
    ];
    for (name, known, given, reason, count) in cases {
        let mut hand = Hand::new();
        hand.turn();
        hand.ready("s", known.map(|known| hermes(known, None, false)));
        let step = hand.provenance(given.clone());
        let ended = step.writes.iter().find_map(|write| match write {
            Write::SegmentEnded { end_reason, .. } => Some(*end_reason),
            _ => None,
        });
        assert_eq!((ended, hand.count()), (reason, count), "{name}");
        assert_eq!(hand.group.head().provenance.as_ref().unwrap().current, given.current, "{name}");
        let again = hand.provenance(given);
        assert!(again.writes.is_empty(), "{name}: {again:?}");
    }
}

/// AM-25, AM-26: a settlement clears what is active and touches nothing else.
#[test]
fn am_25_a_settlement_clears_what_is_active() {
    let mut hand = Hand::in_turn();
    hand.signal(Source::HermesStderr, Sign::Completed);
    hand.signal(Source::HermesStderr, Sign::Started);
    let before = hand.group.head().compacting.clone();
    let step = hand.answer(StopReason::EndTurn);
    assert_eq!(kinds(&step.writes), ["compaction_ended", "turn_settled", "task_ended"]);
    assert_eq!(hand.statuses(), [C::Completed, C::Abandoned]);
    assert_eq!(hand.group.head().compacting, before);
}

/// AM-23: done after the stranded clear still counts and rotates, once.
#[test]
fn am_23_a_late_done_counts_and_rotates() {
    let mut hand = Hand::in_turn();
    hand.signal(Source::HermesStderr, Sign::Started);
    hand.answer(StopReason::EndTurn);
    hand.turn();
    hand.forget();
    for again in [false, true] {
        hand.signal(Source::HermesStderr, if again { Sign::Noted } else { Sign::Completed });
        assert_eq!((hand.count(), hand.segment(), hand.statuses()), (1, 2, vec![C::Completed]));
    }
    assert!(hand.group.current().is_some(), "AM-14: the turn goes on");
}

/// AM-27, AM-28: whatever ends under a compaction, it is not active any more, and the count is as
/// it was.
#[test]
fn am_28_every_end_clears_it() {
    type Ends = fn(&mut Hand);
    let died: Ends = |hand| {
        let exit = Exit::unseen(ExitReason::Exited, "killed");
        hand.apply(Event::AgentExited { run: hand.run(), exit });
    };
    let restarted: Ends = |hand| {
        let group = &hand.group;
        let tasks = group.current().into_iter().chain(group.waiting()).cloned().collect();
        let (run, turn) = (group.run().cloned(), group.turn().cloned());
        let active = group.active_compaction().cloned();
        hand.group = Group::restore(group.head().clone(), tasks, run, turn, active, Vec::new());
        hand.apply(Event::Recovered(Recovery::Restart));
    };
    let too_long: Ends = |hand| {
        hand.expire(|expiry| matches!(expiry, Expiry::Compaction(_)));
    };
    let cut: Ends = |hand| {
        hand.expire(|expiry| matches!(expiry, Expiry::Turn(_)));
    };
    let shut_down: Ends = |hand| {
        hand.apply(Event::Shutdown);
    };
    let ends = [
        ("death", died),
        ("restart", restarted),
        ("deadline", too_long),
        ("turn's deadline", cut),
        ("shutdown", shut_down),
    ];
    for (name, end) in ends {
        for source in DETECTORS {
            let mut hand = Hand::in_turn();
            hand.signal(source, Sign::Completed);
            hand.signal(source, Sign::Started);
            end(&mut hand);
            assert_eq!((hand.active(), hand.count()), (false, 1), "{name} {source:?}");
            let last = hand.last_ended().unwrap().status;
            assert_eq!(last, C::Abandoned, "{name} {source:?}");
        }
        let mut idle = Hand::idle();
        idle.signal(Source::HermesStderr, Sign::Started);
        if name != "turn's deadline" && name != "shutdown" {
            end(&mut idle);
            assert!(!idle.active(), "{name}, with no turn");
        }
    }
}

/// AM-28: the turn in which an agent compacts of its own accord goes on after the deadline.
#[test]
fn am_28_the_deadline_of_an_own_compaction_leaves_its_turn() {
    let mut hand = Hand::in_turn();
    hand.signal(Source::HermesStderr, Sign::Started);
    let step = hand.expire(|expiry| matches!(expiry, Expiry::Compaction(_)));
    assert_eq!(kinds(&step.writes), ["compaction_ended"]);
    assert!(step.effects.is_empty() && hand.group.turn().is_some());
    hand.signal(Source::HermesStderr, Sign::Completed);
    assert_eq!((hand.count(), hand.segment()), (1, 2), "AM-23");
}

/// AM-13, AM-14: what rotates, and with which reason; a turn that runs goes on.
#[test]
fn am_13_four_causes_rotate() {
    type Cause = fn(&mut Hand);
    let cases: [(&str, Cause, EndReason, bool); 4] = [
        (
            "another session is loaded",
            |hand| {
                let exit = Exit::unseen(ExitReason::Exited, "");
                hand.apply(Event::AgentExited { run: hand.run(), exit });
                hand.turn();
                let (run, session) = (hand.run(), SessionId("other".into()));
                let (continuity, provenance) = (Continuity::Loaded, None);
                hand.apply(Event::AgentReady { run, pid: 2, session, continuity, provenance });
            },
            EndReason::AgentRestart,
            true,
        ),
        (
            "another hermes session",
            |hand| {
                hand.provenance(hermes("h1", None, false));
            },
            EndReason::Reset,
            true,
        ),
        (
            "another session is named",
            |hand| {
                hand.name("other");
            },
            EndReason::AcpSessionIdChanged,
            true,
        ),
        (
            "a completed compaction",
            |hand| {
                hand.signal(Source::Acp, Sign::Completed);
            },
            EndReason::Compaction,
            true,
        ),
    ];
    for (name, cause, reason, in_turn) in cases {
        let mut hand = Hand::new();
        hand.turn();
        hand.ready("s", Some(hermes("h0", None, false)));
        hand.forget();
        cause(&mut hand);
        let ended: Vec<_> = hand
            .writes
            .iter()
            .filter_map(|write| match write {
                Write::SegmentEnded { segment, end_reason } => Some((*segment, *end_reason)),
                _ => None,
            })
            .collect();
        assert_eq!((ended, hand.segment()), (vec![(1, reason)], 2), "{name}");
        assert_eq!(hand.group.turn().is_some(), in_turn, "AM-14: {name}");
        hand.forget();
        let session = hand.group.head().session.clone().unwrap();
        hand.name(&session.0);
        assert!(hand.writes.is_empty(), "the same again: {name}");
    }
}

/// AM-12: the first segment has no end before it.
#[test]
fn am_12_the_first_segment_only_begins() {
    let mut hand = Hand::new();
    hand.turn();
    let step = hand.ready("s", Some(hermes("h0", None, false)));
    assert_eq!(kinds(&step.writes)[..2], ["segment_started", "run_ready"]);
    let root =
        |write: &Write| matches!(write, Write::SegmentStarted { segment: 1, parent: None, .. });
    assert!(root(&step.writes[0]), "{step:?}");
}

/// hermes repeats its provenance with every title: that is not the end of the next compaction.
#[test]
fn am_13_a_repeated_provenance_completes_nothing() {
    let mut hand = Hand::new();
    hand.turn();
    hand.ready("s", Some(hermes("h0", None, false)));
    hand.provenance(hermes("h1", Some("h0"), true));
    hand.signal(Source::HermesStderr, Sign::Completed);
    hand.signal(Source::HermesStderr, Sign::Started);
    for previous in [Some("h0"), None] {
        hand.provenance(hermes("h1", previous, true));
        assert_eq!((hand.active(), hand.count()), (true, 1), "{previous:?}");
    }
}

/// A `session/load` after a compaction takes up what goes on, not what was compacted.
#[test]
fn a_restart_takes_up_the_hermes_session_in_force() {
    let mut hand = Hand::new();
    hand.turn();
    hand.ready("s", Some(hermes("h0", None, false)));
    hand.provenance(hermes("h1", Some("h0"), true));
    hand.answer(StopReason::EndTurn);
    let exit = Exit::unseen(ExitReason::Exited, "");
    hand.apply(Event::AgentExited { run: hand.run(), exit });
    hand.turn();
    let launched = hand.effects.iter().rev().find_map(|effect| match effect {
        greenroom_core::Effect::Launch { session, .. } => session.clone(),
        _ => None,
    });
    assert_eq!(launched, Some(SessionId("h1".into())));
}

/// I5: while one is active, others that end at once do not make it forgotten.
#[test]
fn an_active_compaction_is_remembered_whatever_else_ends() {
    let mut hand = Hand::idle();
    hand.signal(Source::HermesStderr, Sign::Started);
    for _ in 0..20 {
        hand.compact(Strategy::Command);
        hand.lock(greenroom_core::LockAnswer::Failed);
    }
    assert!(hand.active());
    hand.signal(Source::HermesStderr, Sign::Completed);
    assert_eq!((hand.count(), hand.segment()), (1, 2));
}

/// A session that greenroom opened itself, and the one that it left, are no news of the agent's.
#[test]
fn a_late_word_about_the_session_that_was_left_changes_nothing() {
    let mut hand = Hand::compacting(Strategy::Rotate);
    hand.say("all of it");
    hand.answer(StopReason::EndTurn);
    let early = hand.name("s2");
    assert!(early.writes.is_empty(), "the session is being opened: {early:?}");
    hand.open(Ok("s2"));
    assert_eq!(hand.segment(), 2);
    let late = hand.name("s");
    assert!(late.writes.is_empty(), "a title that comes late: {late:?}");
    hand.name("s3");
    assert_eq!(hand.segment(), 3, "AM-13");
}
