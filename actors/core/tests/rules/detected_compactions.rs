//! Compactions that detectors report, and the facts that follow: AM-12 to AM-31.

use greenroom_core::{
    Compaction, CompactionSignal, CompactionStatus as C, Continuity, EndReason, Event, Exit,
    ExitReason, Fact, Group, Provenance, Recovery, SessionId, SignalKind, Source, Status,
    StopReason, Strategy, Timer,
};
use greenroom_testing::driver::{Driver, hermes, kinds, signal};

/// A case's name, the reported signals, and how many completed compactions they make.
type Case = (&'static str, Vec<(Source, SignalKind)>, u64);

const DETECTORS: [Source; 3] = [Source::Acp, Source::HermesMeta, Source::HermesStderr];

#[test]
fn a_started_signal_makes_a_compaction_active_and_counts_nothing() {
    for source in DETECTORS {
        let mut driver = Driver::in_turn();
        driver.report(signal(source, SignalKind::Started, Some("h0"), None));
        let compacting = &driver.group.state().compacting;
        assert_eq!((driver.active(), driver.count()), (true, 0), "{source:?}");
        assert_eq!(compacting.last_source, Some(source));
        assert_eq!(compacting.last_started_at, Some(driver.now));
        let active = driver.group.active_compaction().unwrap();
        assert_eq!(active.lineage.before.as_deref(), Some("h0"), "{source:?}");
        assert_eq!(active.task, driver.group.current().map(|task| task.id), "{source:?}");
    }
}

#[test]
fn a_completed_signal_counts_and_rotates_in_one_step() {
    let mut driver = Driver::in_turn();
    driver.report(signal(Source::HermesStderr, SignalKind::Started, Some("h0"), None));
    let mut done = signal(Source::HermesStderr, SignalKind::Completed, None, Some("h1"));
    (done.details.messages_before, done.details.messages_after) = (Some(9), Some(5));
    let step = driver.report(done);
    let stated = ["stderr", "compaction_ended", "segment_ended", "segment_started"];
    assert_eq!(kinds(&step.facts), stated);
    let Fact::CompactionEnded(compaction) = &step.facts[1] else { unreachable!() };
    assert_eq!((compaction.from_segment, compaction.to_segment), (1, Some(2)));
    let details = &compaction.details;
    assert_eq!((details.messages_before, details.messages_after), (Some(9), Some(5)));
    let reason = matches!(
        step.facts[2],
        Fact::SegmentEnded { segment: 1, end_reason: EndReason::Compaction }
    );
    let next = matches!(&step.facts[3], Fact::SegmentStarted { segment: 2, parent: Some(1), .. });
    assert!(reason && next, "{step:?}");
    assert_eq!((driver.active(), driver.count(), driver.segment()), (false, 1, 2));
    assert_eq!(driver.group.state().compacting.last_completed_at, Some(driver.now));
    assert_eq!(driver.group.state().provenance().unwrap().current, "h1");
}

/// AM-23: only a completion counts, and only once.
#[test]
fn only_completions_count_once_each() {
    use {SignalKind::*, Source::*};
    #[rustfmt::skip]
    let cases: [Case; 12] = [
        ("started",                vec![(Acp, Started)],                                            0),
        ("done without started",   vec![(HermesStderr, Completed)],                                 1),
        ("done by two",            vec![(HermesStderr, Completed), (Acp, Completed)],               1),
        ("done by three",          vec![(HermesStderr, Completed), (HermesMeta, Completed), (Acp, Completed)], 1),
        ("done by one, twice",     vec![(HermesStderr, Completed), (HermesStderr, Completed)],      2),
        ("failed",                 vec![(Acp, Started), (Acp, Failed)],                             0),
        ("cancelled",              vec![(Acp, Started), (Acp, Cancelled)],                          0),
        ("skipped",                vec![(HermesStderr, Started), (HermesStderr, Skipped)],          0),
        ("no progress",            vec![(HermesStderr, Started), (HermesStderr, Noop)],             0),
        ("noted alone",            vec![(Acp, Noted)],                                              0),
        ("noted of one that runs", vec![(Acp, Started), (Acp, Noted), (Acp, Completed)],            1),
        ("four attempts",          vec![(HermesStderr, Started), (HermesStderr, Failed), (HermesStderr, Started), (HermesStderr, Noop),
                                      (HermesStderr, Started), (HermesStderr, Started), (HermesStderr, Completed)], 1),
    ];
    for (name, signals, count) in cases {
        let mut driver = Driver::in_turn();
        let begun = driver.segment();
        signals.iter().for_each(|(source, kind)| {
            driver.signal(*source, *kind);
        });
        assert_eq!((driver.count(), u64::from(driver.segment() - begun)), (count, count), "{name}");
        driver.answer(StopReason::EndTurn);
        assert_eq!((driver.count(), driver.active()), (count, false), "{name}");
    }
}

/// AM-29: a later report is about the first compaction that its detector has not reported; if it
/// reports only a turn's last one, about the last that is completed.
#[test]
fn the_detector_decides_which_of_two_compactions_it_reports() {
    use SignalKind::{Completed, Started};
    #[rustfmt::skip]
    let cases = [
        (Source::HermesStderr, [Completed, Completed], [true, false]),
        (Source::HermesMeta,   [Completed, Completed], [false, true]),
        (Source::HermesMeta,   [Completed, Started],   [true, false]),
    ];
    for (source, kinds, expected) in cases {
        let mut driver = Driver::in_turn();
        kinds.into_iter().for_each(|kind| drop(driver.signal(Source::Acp, kind)));
        driver.signal(source, Completed);
        let reported: Vec<_> =
            driver.group.compactions().map(|known| known.sources.contains(&source)).collect();
        assert_eq!(reported, expected, "{source:?} {kinds:?}");
    }
}

/// AM-23: claude reports `completed` twice under one id.
#[test]
fn a_completion_repeated_under_one_key_counts_once() {
    let mut driver = Driver::in_turn();
    for (key, kind) in
        [("a", SignalKind::Started), ("a", SignalKind::Completed), ("b", SignalKind::Completed)]
    {
        for _ in 0..2 {
            let named =
                CompactionSignal { key: Some(key.into()), ..signal(Source::Acp, kind, None, None) };
            driver.report(named);
        }
    }
    assert_eq!((driver.count(), driver.segment()), (2, 3));
}

/// AM-23, AM-13: which values of `_meta.hermes` count, and which rotate.
#[test]
fn a_new_hermes_session_counts_only_after_a_compaction() {
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
        let mut driver = Driver::default();
        driver.turn();
        driver.ready("s", known.map(|known| hermes(known, None, false)));
        let step = driver.provenance(given.clone());
        let ended = step.facts.iter().find_map(|fact| match fact {
            Fact::SegmentEnded { end_reason, .. } => Some(*end_reason),
            _ => None,
        });
        assert_eq!((ended, driver.count()), (reason, count), "{name}");
        assert_eq!(driver.group.state().provenance().unwrap().current, given.current, "{name}");
        let repeated = driver.provenance(given);
        assert!(repeated.facts.is_empty(), "{name}: {repeated:?}");
    }
}

/// AM-25, AM-26: a settlement abandons the active compaction and leaves the others alone.
#[test]
fn a_settlement_abandons_only_the_active_compaction() {
    let mut driver = Driver::in_turn();
    driver.signal(Source::HermesStderr, SignalKind::Completed);
    driver.signal(Source::HermesStderr, SignalKind::Started);
    let before = driver.group.state().compacting.clone();
    let step = driver.answer(StopReason::EndTurn);
    assert_eq!(kinds(&step.facts), ["compaction_ended", "turn_settled", "task_ended"]);
    assert_eq!(driver.statuses(), [C::Completed, C::Abandoned]);
    assert_eq!(driver.group.state().compacting, before);
}

/// AM-23: a completion after the settlement abandoned its compaction still counts and rotates,
/// once.
#[test]
fn a_late_completion_counts_and_rotates() {
    let mut driver = Driver::in_turn();
    driver.signal(Source::HermesStderr, SignalKind::Started);
    driver.answer(StopReason::EndTurn);
    driver.turn();
    driver.clear();
    for repeated in [false, true] {
        driver.signal(
            Source::HermesStderr,
            if repeated { SignalKind::Noted } else { SignalKind::Completed },
        );
        assert_eq!(
            (driver.count(), driver.segment(), driver.statuses()),
            (1, 2, vec![C::Completed])
        );
    }
    assert!(driver.group.current().is_some(), "AM-14: the turn continues");
}

/// AM-27, AM-28: when its run or turn ends, a compaction is no longer active, and the count is
/// unchanged.
#[test]
fn every_end_of_a_run_or_turn_abandons_the_active_compaction() {
    type Ends = fn(&mut Driver);
    let died: Ends = |driver| {
        let exit = Exit::unseen(ExitReason::Exited, "killed");
        driver.apply(Event::AgentExited { run: driver.run(), exit });
    };
    let restarted: Ends = |driver| {
        let group = &driver.group;
        let tasks = group.current().into_iter().chain(group.waiting()).cloned().collect();
        let (run, turn) = (group.run().cloned(), group.attempt().cloned());
        let active = group.active_compaction().cloned();
        driver.group = Group::restore(group.state().clone(), tasks, run, turn, active, Vec::new());
        driver.apply(Event::Recovered(Recovery::Restart));
    };
    let deadline: Ends = |driver| {
        driver.expire(|timer| matches!(timer, Timer::Compaction(_)));
    };
    let turn_deadline: Ends = |driver| {
        driver.expire(|timer| matches!(timer, Timer::Attempt(_)));
    };
    let shut_down: Ends = |driver| {
        driver.apply(Event::DrainTimedOut);
    };
    let ends = [
        ("death", died),
        ("restart", restarted),
        ("deadline", deadline),
        ("turn's deadline", turn_deadline),
        ("shutdown", shut_down),
    ];
    for (name, end) in ends {
        for source in DETECTORS {
            let mut driver = Driver::in_turn();
            driver.signal(source, SignalKind::Completed);
            driver.signal(source, SignalKind::Started);
            end(&mut driver);
            assert_eq!((driver.active(), driver.count()), (false, 1), "{name} {source:?}");
            let last = driver.last_ended().unwrap().status;
            assert_eq!(last, C::Abandoned, "{name} {source:?}");
        }
        let mut idle = Driver::idle();
        idle.signal(Source::HermesStderr, SignalKind::Started);
        if name != "turn's deadline" && name != "shutdown" {
            end(&mut idle);
            assert!(!idle.active(), "{name}, with no turn");
        }
    }
}

/// AM-28: a turn in which the agent compacts by itself continues after the compaction's deadline.
#[test]
fn the_deadline_of_a_detected_compaction_leaves_its_turn_running() {
    let mut driver = Driver::in_turn();
    driver.signal(Source::HermesStderr, SignalKind::Started);
    let step = driver.expire(|timer| matches!(timer, Timer::Compaction(_)));
    assert_eq!(kinds(&step.facts), ["compaction_ended"]);
    assert!(step.effects.is_empty() && driver.group.attempt().is_some());
    driver.signal(Source::HermesStderr, SignalKind::Completed);
    assert_eq!((driver.count(), driver.segment()), (1, 2), "AM-23");
}

/// AM-13, AM-14: what rotates the segment, and with which reason; a running turn continues.
#[test]
fn segments_rotate_for_four_causes() {
    type Cause = fn(&mut Driver);
    let cases: [(&str, Cause, EndReason, bool); 4] = [
        (
            "another session is loaded",
            |driver| {
                let exit = Exit::unseen(ExitReason::Exited, "");
                driver.apply(Event::AgentExited { run: driver.run(), exit });
                driver.turn();
                driver.ready_as("other", Continuity::Loaded, None, false);
            },
            EndReason::AgentRestart,
            true,
        ),
        (
            "another hermes session",
            |driver| {
                driver.provenance(hermes("h1", None, false));
            },
            EndReason::Reset,
            true,
        ),
        (
            "the agent continues in another session",
            |driver| {
                driver.say("so");
                driver.say_in("other", "so");
                assert_eq!(driver.segment(), 1, "not before the turn's end");
                driver.answer(StopReason::EndTurn);
            },
            EndReason::AcpSessionIdChanged,
            false,
        ),
        (
            "a completed compaction",
            |driver| {
                driver.signal(Source::Acp, SignalKind::Completed);
            },
            EndReason::Compaction,
            true,
        ),
    ];
    for (name, cause, reason, in_turn) in cases {
        let mut driver = Driver::default();
        driver.turn();
        driver.ready("s", Some(hermes("h0", None, false)));
        driver.clear();
        cause(&mut driver);
        let ended: Vec<_> = driver
            .facts
            .iter()
            .filter_map(|fact| match fact {
                Fact::SegmentEnded { segment, end_reason } => Some((*segment, *end_reason)),
                _ => None,
            })
            .collect();
        assert_eq!((ended, driver.segment()), (vec![(1, reason)], 2), "{name}");
        assert_eq!(driver.group.attempt().is_some(), in_turn, "AM-14: {name}");
        driver.clear();
        let session = driver.group.state().session_id().cloned().unwrap();
        driver.say_in(&session.0, "so");
        assert_eq!(kinds(&driver.facts), ["session/update"], "the same session again: {name}");
    }
}

/// AM-12: no `segment_ended` precedes the first segment.
#[test]
fn the_first_segment_has_no_predecessor() {
    let mut driver = Driver::default();
    driver.turn();
    let step = driver.ready("s", Some(hermes("h0", None, false)));
    assert_eq!(kinds(&step.facts)[..2], ["segment_started", "run_ready"]);
    let root = |fact: &Fact| matches!(fact, Fact::SegmentStarted { segment: 1, parent: None, .. });
    assert!(root(&step.facts[0]), "{step:?}");
}

/// hermes repeats its provenance with every title: a repetition does not end the next compaction.
#[test]
fn a_repeated_provenance_completes_no_compaction() {
    let mut driver = Driver::default();
    driver.turn();
    driver.ready("s", Some(hermes("h0", None, false)));
    driver.provenance(hermes("h1", Some("h0"), true));
    driver.signal(Source::HermesStderr, SignalKind::Completed);
    driver.signal(Source::HermesStderr, SignalKind::Started);
    for previous in [Some("h0"), None] {
        driver.provenance(hermes("h1", previous, true));
        assert_eq!((driver.active(), driver.count()), (true, 1), "{previous:?}");
    }
}

/// A `session/load` after a compaction restores the session that continues, not the compacted one.
#[test]
fn a_restart_restores_the_current_hermes_session() {
    let mut driver = Driver::default();
    driver.turn();
    driver.ready("s", Some(hermes("h0", None, false)));
    driver.provenance(hermes("h1", Some("h0"), true));
    driver.answer(StopReason::EndTurn);
    let exit = Exit::unseen(ExitReason::Exited, "");
    driver.apply(Event::AgentExited { run: driver.run(), exit });
    driver.turn();
    let launched = driver.effects.iter().rev().find_map(|effect| match effect {
        greenroom_core::Effect::Launch { session, .. } => session.clone(),
        _ => None,
    });
    assert_eq!(launched, Some(SessionId("h1".into())));
}

/// I5, I11: the group keeps an active compaction while others end at once.
#[test]
fn an_active_compaction_survives_twenty_skipped_ones() {
    let mut driver = Driver::idle();
    driver.signal(Source::HermesStderr, SignalKind::Started);
    for _ in 0..20 {
        driver.compact(Strategy::Command);
        driver.lock(greenroom_core::LockAnswer::Failed);
    }
    assert!(driver.active());
    assert_eq!(driver.statuses().len(), 16, "I11: the oldest that have ended are forgotten");
    driver.signal(Source::HermesStderr, SignalKind::Completed);
    assert_eq!((driver.count(), driver.segment()), (1, 2));
}

/// AM-23: stderr may report late what ACP has reported. Without ACP it reports another compaction.
#[test]
fn in_a_later_turn_stderr_reports_late_only_what_acp_has_reported() {
    for (first, expected) in [(Source::Acp, 1), (Source::HermesMeta, 2)] {
        let mut driver = Driver::in_turn();
        driver.signal(first, SignalKind::Completed);
        driver.answer(StopReason::EndTurn);
        driver.turn();
        driver.signal(Source::HermesStderr, SignalKind::Completed);
        assert_eq!(driver.count(), expected, "{first:?}");
    }
}

/// The group's status says so while its agent compacts by itself.
#[test]
fn a_group_is_compacting_while_its_turn_compacts() {
    let mut driver = Driver::in_turn();
    assert_eq!(driver.group.status(), Status::Running);
    driver.signal(Source::Acp, SignalKind::Started);
    assert_eq!(driver.group.status(), Status::Compacting);
    driver.signal(Source::Acp, SignalKind::Completed);
    assert_eq!(driver.group.status(), Status::Running);
}

/// AM-13: a session known by its name alone gets the rest from another detector, once.
#[test]
fn a_name_is_completed_by_a_fuller_provenance() {
    let mut driver = Driver::default();
    driver.turn();
    driver.ready("s", Some(hermes("h0", None, false)));
    driver.signal(Source::HermesStderr, SignalKind::Started);
    let done = signal(Source::HermesStderr, SignalKind::Completed, Some("h0"), Some("h1"));
    driver.report(done.clone());
    let named = driver.group.state().provenance().cloned().unwrap();
    assert_eq!((&*named.current, Some(&named.given)), ("h1", done.lineage.given.as_ref()));
    let notes = |driver: &mut Driver, given: &Provenance| {
        kinds(&driver.provenance(given.clone()).facts).contains(&"provenance_noted")
    };
    assert!(!notes(&mut driver, &named), "its name again");
    let full = hermes("h1", Some("h0"), true);
    assert!(notes(&mut driver, &full));
    for known in [&full, &named, &hermes("h1", None, false)] {
        assert!(!notes(&mut driver, known), "{known:?}");
        assert_eq!(driver.group.state().provenance(), Some(&full));
    }
}

/// DQ-12: the usage that the agent reports after its completion is the compaction's.
#[test]
fn usage_after_a_completion_is_what_the_compaction_left() {
    for used in [Some(20), None] {
        let mut driver = Driver::compacting(Strategy::Command);
        driver.signal(Source::Acp, SignalKind::Completed);
        if let Some(used) = used {
            let step = driver.usage(used);
            assert_eq!(kinds(&step.facts)[1..], ["compaction_updated"]);
        }
        let step = driver.answer(StopReason::EndTurn);
        assert_eq!(kinds(&step.facts), ["turn_settled", "task_ended"], "{used:?}");
        let after = driver.group.compactions().last().unwrap().details.tokens_after;
        assert_eq!(after, used);
    }
}

/// AM-29, A-5: which compaction a signal belongs to, and whether it decides its end. `k1` and `k2`
/// are ACP's keys.
#[test]
fn a_signal_belongs_to_the_compaction_that_it_fits_best() {
    use {C::*, SignalKind as S, Source::*};
    type Known = Vec<(C, Vec<Source>)>;
    let from = |source: Source| move |kind| signal(source, kind, None, None);
    let (meta, stderr) = (from(HermesMeta), from(HermesStderr));
    let acp = |key: &str, kind| CompactionSignal { key: Some(key.into()), ..from(Acp)(kind) };
    let two = || vec![acp("k1", S::Completed), acp("k2", S::Completed)];
    let with = |mut signals: Vec<_>, more: Vec<_>| {
        signals.extend(more);
        signals
    };
    let meta_named = signal(HermesMeta, S::Completed, Some("h0"), Some("h1"));
    let stderr_named = signal(HermesStderr, S::Started, Some("h0"), None);
    let replaced = vec![acp("k1", S::Started), acp("k2", S::Started), acp("k2", S::Completed)];
    #[rustfmt::skip]
    let cases: [(&str, Vec<CompactionSignal>, Known); 10] = [
        ("the first unreported",    with(two(), vec![stderr(S::Completed)]),
            vec![(Completed, vec![Acp, HermesStderr]), (Completed, vec![Acp])]),
        ("the last, of meta",       with(two(), vec![meta(S::Completed)]),
            vec![(Completed, vec![Acp]), (Completed, vec![Acp, HermesMeta])]),
        ("the one that it names",   with(two(), vec![meta_named, stderr_named]),
            vec![(Completed, vec![Acp]), (Completed, vec![Acp, HermesMeta, HermesStderr])]),
        ("not the one left open",   with(replaced, vec![stderr(S::Completed)]),
            vec![(Abandoned, vec![Acp]), (Completed, vec![Acp, HermesStderr])]),
        ("its repeated start",      vec![stderr(S::Started), stderr(S::Started)],
            vec![(InProgress, vec![HermesStderr])]),
        ("repeated late",           vec![stderr(S::Started), acp("k1", S::Completed), stderr(S::Started)],
            vec![(Completed, vec![HermesStderr, Acp])]),
        ("not one that failed",     vec![stderr(S::Started), acp("k1", S::Failed), stderr(S::Started)],
            vec![(Failed, vec![HermesStderr, Acp]), (InProgress, vec![HermesStderr])]),
        ("not one that ended so",   vec![acp("k1", S::Started), stderr(S::Failed), meta(S::Completed)],
            vec![(Abandoned, vec![Acp, HermesStderr]), (InProgress, vec![HermesMeta])]),
        ("ACP contradicts it",      vec![acp("k1", S::Started), stderr(S::Failed)],
            vec![(InProgress, vec![Acp, HermesStderr])]),
        ("ACP has not reported it", vec![acp("k1", S::Completed), stderr(S::Completed), stderr(S::Started), stderr(S::Failed)],
            vec![(Completed, vec![Acp, HermesStderr]), (Failed, vec![HermesStderr])]),
    ];
    for (name, signals, expected) in cases {
        let mut driver = Driver::in_turn();
        signals.into_iter().for_each(|signal| drop(driver.report(signal)));
        let shown = |known: &Compaction| (known.status, known.sources.clone());
        assert_eq!(driver.group.compactions().map(shown).collect::<Known>(), expected, "{name}");
    }
}
