//! Content blocks that the agent does not take.

use greenroom_core::{
    BlockKind, Continuity, Event, Exit, ExitReason, Fact, Group, Json, Origin, PromptCapabilities,
    RefusedBlock, Rejected, SessionId, Settings, Task, TaskId, TaskState, Work,
};
use greenroom_testing::driver::Driver;
use uuid::Uuid;

const NONE: PromptCapabilities =
    PromptCapabilities { image: false, audio: false, embedded_context: false };
const IMAGES: PromptCapabilities = PromptCapabilities { image: true, ..NONE };

fn submit(driver: &mut Driver, number: u128) -> Result<TaskId, Rejected> {
    let blocks = r#"[{"type":"text","text":"see"},{"type":"image","data":"AA=="}]"#;
    let prompt = Json::parse(blocks.into()).unwrap();
    let id = TaskId(Uuid::from_u128(number));
    let task = Task::new(id, Work::Turn { prompt }, Origin::Api);
    let event = Event::Submitted(Box::new(task));
    // No event of this kind needs an id.
    let (now, fresh) = (driver.moment(), &mut Uuid::nil);
    driver.group.apply(event, now, &driver.settings, fresh).map(|_| id)
}

fn ready(driver: &mut Driver, prompts: PromptCapabilities) {
    let (run, session) = (driver.run(), SessionId("s".into()));
    let (continuity, provenance) = (Continuity::New, None);
    let prompts = Some(prompts);
    driver.apply(Event::AgentReady {
        run,
        pid: 1,
        session,
        continuity,
        provenance,
        is_forgetful: false,
        prompts,
        loss: None,
    });
}

fn configure(driver: &mut Driver, agent: &str) {
    let settings = Settings { agent: agent.into(), ..Settings::default() };
    driver.apply(Event::Configured(settings));
}

fn assert_failed_unsent(driver: &Driver, task: TaskId) {
    let ended = driver.facts.iter().find_map(|fact| match fact {
        Fact::TaskEnded { task: id, state, error: Some(error), attempt, .. } if *id == task => {
            Some((*state, &*error.code, *attempt))
        }
        _ => None,
    });
    assert_eq!(ended, Some((TaskState::Failed, "prompt_not_supported", 0)));
    let sent = |fact: &Fact| matches!(fact, Fact::TurnStarted { task: id, .. } if *id == task);
    assert!(!driver.facts.iter().any(sent));
}

/// AM-2: a prompt with a block that the agent is known not to take is refused at once.
#[test]
fn a_block_that_the_agent_does_not_take_is_refused() {
    let refused = Rejected::PromptNotSupported(RefusedBlock { index: 1, kind: BlockKind::Image });
    for (given, expected) in [(NONE, Some(refused)), (IMAGES, None)] {
        let mut driver = Driver::default();
        driver.turn();
        ready(&mut driver, given);
        assert_eq!(submit(&mut driver, 1001).err(), expected);
        let exit = Exit::unseen(ExitReason::Stopped, "");
        driver.apply(Event::AgentExited { run: driver.run(), exit });
        assert_eq!(submit(&mut driver, 1002).err(), expected, "also after the run");
        let state = driver.group.state().clone();
        driver.group = Group::restore(state, Vec::new(), None, None, [], Vec::new());
        assert_eq!(submit(&mut driver, 1004).err(), expected, "and after a restart");
        driver.apply(Event::Resumed);
        assert!(submit(&mut driver, 1005).is_ok(), "it may be another version by now");
        configure(&mut driver, "other");
        assert!(submit(&mut driver, 1003).is_ok(), "the other agent is unknown");
    }
}

/// AM-2: if the agent was unknown before, the task fails before START, and the queue continues.
#[test]
fn a_task_fails_unsent_once_its_agent_is_known() {
    let mut driver = Driver::default();
    let task = submit(&mut driver, 1001).unwrap();
    let next = driver.queue_turn();
    driver.grant();
    ready(&mut driver, NONE);
    assert_failed_unsent(&driver, task);
    driver.grant();
    let started = driver
        .facts
        .iter()
        .any(|fact| matches!(fact, Fact::TaskStarted { task, attempt: 1, .. } if *task == next));
    assert!(started, "{:?}", driver.facts);
}

/// AM-2: a task that was accepted for one agent fails unsent if another one gets it, which does not
/// take its blocks; what the outdated run takes says nothing.
#[test]
fn a_task_is_checked_again_for_another_agent() {
    let mut driver = Driver::default();
    driver.turn();
    ready(&mut driver, IMAGES);
    let task = submit(&mut driver, 1001).unwrap();
    configure(&mut driver, "other");
    driver.apply(Event::AgentExited {
        run: driver.run(),
        exit: Exit::unseen(ExitReason::Stopped, ""),
    });
    driver.grant();
    ready(&mut driver, NONE);
    assert_failed_unsent(&driver, task);
}
