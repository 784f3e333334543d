//! Questions to a group: its status, whether it has work, whether its log may be truncated; and the
//! limits of its queue.

use greenroom_core::{
    Deadline, Event, Group, Json, Kinds, Lines, Origin, PermissionAsked, PermissionOption,
    PermissionShown, Rejected, RetryPolicy, SignalKind, Source, Stage, Status, StopReason,
    Strategy, Task, TaskId, Timestamp, Work,
};
use greenroom_testing::driver::{Driver, blocks};
use uuid::Uuid;

type Given = fn() -> Driver;

fn after(mut driver: Driver, event: Event) -> Driver {
    driver.apply(event);
    driver
}

fn paused() -> Driver {
    after(Driver::idle(), Event::Paused)
}

fn with_waiting_turn(mut driver: Driver) -> Driver {
    driver.queue_turn();
    driver
}

/// Returns a group whose compaction task waits, and which asked for its lock.
fn locking() -> Driver {
    let mut driver = Driver::idle();
    driver.compact(Strategy::Command);
    driver
}

fn compacts_by_itself() -> Driver {
    let mut driver = Driver::idle();
    driver.signal(Source::Acp, SignalKind::Started);
    driver
}

/// Returns a group whose compaction is completed, and its task not yet.
fn compacted() -> Driver {
    let mut driver = Driver::compacting(Strategy::Command);
    driver.signal(Source::Acp, SignalKind::Completed);
    driver
}

fn retrying() -> Driver {
    let mut driver = Driver::in_turn();
    driver.settings.retry = RetryPolicy::NoOutput;
    driver.fail(-32603);
    driver
}

/// Returns an idle group whose agent asks for permission.
fn asking() -> Driver {
    let asked = PermissionAsked {
        request: blocks("1"),
        tool_kind: None,
        options: vec![PermissionOption { id: "a".into(), kind: "allow_once".into() }],
        shown: PermissionShown { tool_call: blocks(""), options: blocks("") },
    };
    let kinds = Kinds::All("session/request_permission".into());
    let lines = Lines { count: 1, kinds, text: "{}".to_owned().into() };
    let mut driver = Driver::idle();
    let run = driver.run();
    driver.apply(Event::PermissionAsked { run, lines, asked: Box::new(asked) });
    driver
}

/// API-1: the status of a group, in each of its words but the two that retries and interruptions
/// lead to.
#[test]
fn a_group_shows_what_it_does() {
    let starting = || {
        let mut driver = Driver::default();
        driver.turn();
        driver
    };
    #[rustfmt::skip]
    let cases: [(&str, Given, Status); 12] = [
        ("no task",                       Driver::default,                                   Status::Idle),
        ("no task, with a run",           Driver::idle,                                      Status::Idle),
        ("a task without its agent",      starting,                                          Status::Starting),
        ("a turn",                        Driver::in_turn,                                   Status::Running),
        ("a compaction",                  || Driver::compacting(Strategy::Command),          Status::Compacting),
        ("a compaction that was seen",    compacted,                                         Status::Compacting),
        ("a task without a slot",         || with_waiting_turn(Driver::idle()),              Status::Waiting),
        ("paused, without a task",        paused,                                            Status::Paused),
        ("paused, a task waits",          || with_waiting_turn(paused()),                    Status::Paused),
        ("paused in a turn",              || after(Driver::in_turn(), Event::Paused),        Status::Running),
        ("archived",                      || after(Driver::idle(), Event::Archived),         Status::Archived),
        ("archived in a turn",            || after(Driver::in_turn(), Event::Archived),      Status::Archived),
    ];
    for (name, given, status) in cases {
        assert_eq!(given().group.status(), status, "{name}");
    }
}

/// I2: the server starts the actor of each group that has tasks to continue with. A paused group
/// has none without a queue; the other words say it.
#[test]
fn a_stored_status_says_whether_there_is_work() {
    use Status::{Archived, Compacting, Degraded, Held, Idle, Paused, Running, Starting, Waiting};
    for (statuses, queue_length, has_work) in [
        (&[Idle, Archived, Paused][..], 0, false),
        (&[Idle, Archived], 1, false),
        (&[Paused], 1, true),
        (&[Paused], 2, true),
        (&[Starting, Running, Compacting, Waiting, Held, Degraded], 0, true),
    ] {
        for status in statuses {
            assert_eq!(status.has_work(queue_length), has_work, "{status:?} {queue_length}");
        }
    }
}

/// I13: the log may be truncated only where nothing that began is open.
#[test]
fn a_group_is_between_tasks_once_all_that_began_has_ended() {
    #[rustfmt::skip]
    let cases: [(&str, Given, bool); 8] = [
        ("never started",                 Driver::default,                                   true),
        ("idle, with a run",              Driver::idle,                                      true),
        ("a task waits, never started",   || with_waiting_turn(Driver::idle()),              true),
        ("a turn runs",                   Driver::in_turn,                                   false),
        ("the agent compacts by itself",  compacts_by_itself,                                false),
        ("it waits for a lock",           locking,                                           false),
        ("a permission is open",          asking,                                            false),
        ("a task waits for its retry",    retrying,                                          false),
    ];
    for (name, given, expected) in cases {
        assert_eq!(given().group.is_between_tasks(), expected, "{name}");
    }
}

/// HL-3: the lock is for the compaction that is next.
#[test]
fn the_lock_is_for_a_compaction_task() {
    let locking_task = |driver: &Driver| driver.group.locking_task();
    assert_eq!(locking_task(&with_waiting_turn(Driver::idle())), None);
    let driver = locking();
    let next = driver.group.waiting().next().map(|task| task.id);
    assert!(next.is_some());
    assert_eq!(locking_task(&driver), next);
    let mut driver = Driver::compacting(Strategy::Command);
    assert_eq!(locking_task(&driver), driver.group.current().map(|task| task.id));
    driver.answer(StopReason::EndTurn);
    assert_eq!(locking_task(&driver), None);
}

/// Submits a turn to a group that grants no slot.
fn submit(driver: &mut Driver, id: u128, text: &str) -> Result<TaskId, Rejected> {
    let task = TaskId(Uuid::from_u128(id));
    let work = Work::Turn { prompt: blocks(text) };
    let event = Event::Submitted(Box::new(Task::new(task, work, Origin::Api)));
    let now = driver.moment();
    driver.group.apply(event, now, &driver.settings, &mut Uuid::nil).map(|_| task)
}

/// I11: the queue takes what fits its limits of tasks and bytes exactly, and its first prompt
/// always. What leaves the queue makes room for as much.
#[test]
fn a_full_queue_refuses_a_prompt_until_another_leaves() {
    let bytes = blocks("do it").as_str().len();
    for (name, tasks_max, bytes_max) in [
        ("three tasks", 3, 9 * bytes),
        ("the bytes of three tasks", 9, 3 * bytes),
        ("one byte less than four tasks", 9, 4 * bytes - 1),
    ] {
        let mut driver = Driver::default();
        driver.settings.limits.queue_max = tasks_max;
        driver.settings.limits.queue_bytes_max = bytes_max;
        let submit = |driver: &mut Driver, id| submit(driver, id, "do it");
        let accepted = [1, 2, 3].map(|id| submit(&mut driver, id).expect(name));
        assert_eq!(submit(&mut driver, 4), Err(Rejected::QueueFull), "{name}");
        driver.apply(Event::CancelRequested(accepted[1]));
        submit(&mut driver, 4).expect(name);
        assert_eq!(submit(&mut driver, 5), Err(Rejected::QueueFull), "{name}");
    }
    let mut driver = Driver::default();
    driver.settings.limits.queue_bytes_max = 1;
    submit(&mut driver, 1, "more than fits").expect("the queue is empty");
    assert_eq!(submit(&mut driver, 2, ""), Err(Rejected::QueueFull));

    // Metadata counts, too.
    let mut driver = Driver::default();
    driver.settings.limits.queue_bytes_max = 2 * bytes + 9;
    let mut with_metadata = |id, metadata: &str| {
        let work = Work::Turn { prompt: blocks("do it") };
        let task = Task::new(TaskId(Uuid::from_u128(id)), work, Origin::Api);
        let metadata = Some(Json::parse(metadata.into()).expect("JSON"));
        let event = Event::Submitted(Box::new(Task { metadata, ..task }));
        let now = driver.moment();
        driver.group.apply(event, now, &driver.settings, &mut Uuid::nil).map(|_| ())
    };
    with_metadata(1, "12345").expect("the queue is empty");
    assert_eq!(with_metadata(2, "12345"), Err(Rejected::QueueFull));
    with_metadata(2, "1234").expect("it fits exactly");
    assert_eq!(driver.group.waiting_bytes(), 2 * bytes + 9);
}

/// I2, I8: a task is accepted now, as the next one, and waits, whatever it was before.
#[test]
fn an_accepted_task_waits_as_the_next_in_order() {
    let mut driver = with_waiting_turn(Driver::in_turn());
    let work = Work::Turn { prompt: blocks("do it") };
    let task = Task::new(TaskId(Uuid::from_u128(99)), work, Origin::Api);
    let (ordinal, created_at) = (3, driver.now);
    let stage = Stage::Claimed { at: Timestamp(1), retry: None };
    driver.apply(Event::Submitted(Box::new(Task { stage, ordinal: 1, ..task.clone() })));
    let accepted = driver.group.waiting().last();
    let expected = Task { ordinal, created_at, stage: Stage::Queued, ..task };
    assert_eq!(accepted, Some(&expected));
}

/// I13: what is counted of a queue is what waits in it, as after a restart.
#[test]
fn a_queue_counts_the_tasks_that_wait() {
    let mut driver = Driver::default();
    for (id, expires) in [(1, true), (2, false), (3, true)] {
        let work = Work::Turn { prompt: blocks("do it") };
        let task = Task::new(TaskId(Uuid::from_u128(id)), work, Origin::Api);
        let expires = expires.then(|| Deadline::after(driver.moment(), 5));
        driver.apply(Event::Submitted(Box::new(Task { expires, ..task })));
    }
    for id in 1..=3 {
        driver.apply(Event::CancelRequested(TaskId(Uuid::from_u128(id))));
        let (state, waiting) = (driver.group.state().clone(), driver.group.waiting().cloned());
        let restored = Group::restore(state, waiting.collect(), None, None, [], Vec::new());
        assert_eq!(driver.group, restored, "without task {id}");
    }
}
