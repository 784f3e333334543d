//! Rules that come from recordings of real agents (RA), each as one short test.

use greenroom_core::{
    CompactionStatus, Details, EndReason, ExitReason, Fact, Json, Provenance, SignalKind, Source,
    StopReason, Strategy, Task, TaskState,
};
use greenroom_testing::driver::{Driver, signal};

/// Answers the prompt, and returns the ended task.
fn ended(driver: &mut Driver) -> Task {
    let facts = driver.answer(StopReason::EndTurn).facts.into_iter();
    let mut ended = facts.filter_map(|fact| match fact {
        Fact::TaskEnded { record, .. } => Some(*record),
        _ => None,
    });
    ended.next().unwrap()
}

/// Some agents write why a compaction failed, after their warnings, and give no answer.
#[test]
fn the_reason_of_a_failed_compaction_is_no_answer() {
    #[rustfmt::skip]
    let cases = [
        ("the reason alone",   &["no model"][..],                    Some("no model"), true),
        ("after a warning",    &["Warning: x.\n\n", "no model\n\n"], Some("no model"), true),
        ("an answer after it", &["no model", "42"],                  Some("no model"), false),
        ("it gives no reason", &["42"],                              Some(""),         false),
        ("no reason",          &["42"],                              None,             false),
    ];
    for (name, texts, error, is_empty) in cases {
        let mut driver = Driver::in_turn();
        driver.signal(Source::Acp, SignalKind::Started);
        let mut failed = signal(Source::Acp, SignalKind::Failed, None, None);
        failed.details = Details { error: error.map(str::to_owned), ..Details::default() };
        driver.report(failed);
        for text in texts {
            driver.say(text);
        }
        let task = ended(&mut driver);
        assert_eq!(task.state(), TaskState::Completed, "{name}");
        assert_eq!(task.ending().findings.has_empty_answer, is_empty, "{name}");
    }
}

/// Some agents answer a failed compaction as if it had completed, with a usage of zero.
#[test]
fn zero_usage_after_a_compaction_means_it_failed() {
    #[rustfmt::skip]
    let cases = [
        ("nothing in use", Some(0), CompactionStatus::Failed,    TaskState::Failed,    0),
        ("a summary",      Some(1), CompactionStatus::Completed, TaskState::Completed, 1),
        ("not measured",   None,    CompactionStatus::Completed, TaskState::Completed, 1),
        ("freed nothing",  Some(9), CompactionStatus::Noop,      TaskState::Skipped,   0),
    ];
    for (name, after, status, state, count) in cases {
        let mut driver = Driver::in_turn();
        driver.usage(9);
        driver.answer(StopReason::EndTurn);
        driver = Driver::compacting_in(driver, Strategy::Command);
        if let Some(used) = after {
            driver.usage(used);
        }
        let task = ended(&mut driver);
        assert_eq!((driver.statuses(), task.state()), (vec![status], state), "{name}");
        assert_eq!(driver.count(), count, "{name}");
    }
}

/// AM-13: an agent may restore its own session from before a compaction if a client loads the id
/// that ACP knows: another context under the same id.
#[test]
fn another_own_session_under_the_same_id_opens_a_segment() {
    let of = |current: &str| {
        let (current, given) = (current.to_owned(), Json::parse("{}".into()).unwrap());
        Provenance { current, previous: None, compacted: false, given }
    };
    #[rustfmt::skip]
    let cases = [
        ("the same",    Some(of("a")), Some(of("a")), vec![]),
        ("another",     Some(of("a")), Some(of("b")), vec![EndReason::Reset]),
        ("none given",  Some(of("a")), None,          vec![]),
        ("first given", None,          Some(of("a")), vec![]),
    ];
    for (name, first, second, expected) in cases {
        let mut driver = Driver::default();
        driver.turn();
        driver.ready("a", first);
        driver.answer(StopReason::EndTurn);
        driver.exit(ExitReason::Exited);
        driver.turn();
        driver.ready("a", second);
        let ended = driver.facts.iter().filter_map(|fact| match fact {
            Fact::SegmentEnded { end_reason, .. } => Some(*end_reason),
            _ => None,
        });
        assert_eq!(ended.collect::<Vec<_>>(), expected, "{name}");
    }
}
