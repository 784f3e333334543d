//! The load: one caller for each group, and one that answers permissions and kills agents.

use std::{
    collections::VecDeque,
    thread,
    time::{Duration, Instant},
};

use greenroom_test_support::{process, random::Random};
use rustix::process::Signal;
use serde_json::json;

use crate::{
    history::{Exchange, text},
    plan::Group,
    process::marked,
    prompt::prompt,
    stage::{Ask, Client, Stage},
};

/// The time between two attempts to reach a server that is down.
const PAUSE: Duration = Duration::from_millis(10);

/// How long a caller waits when the queue is full.
const FULL: Duration = Duration::from_millis(15);

/// The most earlier requests that a caller remembers.
const REMEMBERED: usize = 40;

/// One group's caller.
struct Caller<'a> {
    stage: &'a Stage,
    client: Client<'a>,
    group: &'a Group,
    random: Random,
    /// Unanswered requests with a key: the caller repeats them until they are answered.
    unanswered: VecDeque<Ask>,
    /// Requests with a key that were answered.
    answered: VecDeque<Ask>,
    tasks: VecDeque<String>,
    count: u64,
}

/// Submits work until the load ends, and then repeats the unanswered requests.
pub fn call(stage: &Stage, group: &Group) {
    let mut caller = Caller {
        stage,
        client: stage.client(),
        group,
        random: Random::new(stage.plan.seed, &group.name),
        unanswered: VecDeque::new(),
        answered: VecDeque::new(),
        tasks: VecDeque::new(),
        count: 0,
    };
    let made = Ask { method: "PUT", ..Ask::post(caller.path(""), json!({ "agent": group.agent })) };
    caller.until_answered(&made);
    while !stage.is_calm() {
        caller.step();
    }
    while let (Some(ask), false) = (caller.unanswered.pop_front(), stage.is_over()) {
        caller.submit(ask);
        thread::sleep(PAUSE);
    }
}

impl Caller<'_> {
    fn path(&self, rest: &str) -> String {
        format!("/v1/groups/{}{rest}", self.group.name)
    }

    /// Sends an idempotent request until it is answered.
    fn until_answered(&mut self, ask: &Ask) {
        while !self.stage.is_over() {
            match self.client.send(ask) {
                Some(exchange) if (200..300).contains(&exchange.status) => return,
                _ => thread::sleep(PAUSE),
            }
        }
    }

    fn step(&mut self) {
        if self.stage.address().is_none() {
            return thread::sleep(PAUSE);
        }
        if let Some(ask) = self.unanswered.pop_front() {
            return self.submit(ask);
        }
        if self.group.witness {
            return self.turn(true);
        }
        match self.random.between(0, 99) {
            0..=62 => self.turn(false),
            63..=68 => self.compaction(),
            69..=74 => self.repeat(),
            75..=80 => self.on_a_task("/cancel"),
            81..=84 => self.on_a_task("/retry"),
            85..=91 => self.look(),
            92..=94 => {
                self.ask(Ask::post(self.path("/pause"), json!({})));
                thread::sleep(self.random.ms(0, 80));
                let resume = Ask::post(self.path("/resume"), json!({}));
                self.until_answered(&resume);
            }
            95 | 96 => drop(self.ask(Ask::post(self.path("/stop"), json!({})))),
            97 => {
                self.ask(Ask { method: "DELETE", ..Ask::get(self.path("")) });
                let revived = json!({ "agent": self.group.agent });
                let put = Ask { method: "PUT", ..Ask::post(self.path(""), revived) };
                self.until_answered(&put);
            }
            _ => {
                let title = json!({ "title": format!("title {}", self.count) });
                self.ask(Ask { method: "PUT", ..Ask::post(self.path(""), title) });
            }
        }
    }

    fn ask(&mut self, ask: Ask) -> Option<Exchange> {
        self.client.send(&ask)
    }

    fn turn(&mut self, witness: bool) {
        self.count += 1;
        let marker = format!("{}-{}", self.group.name, self.count);
        let hangs = self.stage.plan.hangs;
        let text = prompt(&mut self.random, witness, hangs, &marker);
        let mut body = json!({ "prompt": text });
        if !witness && self.random.one_in(15) {
            body["expires_in_ms"] = json!(self.random.between(1, 3_000));
        }
        let wait = if witness { "/turns?wait=5" } else { "/turns" };
        let mut ask = Ask::post(self.path(wait), body);
        ask.key = self.random.one_in(2).then_some(marker);
        self.submit(ask);
    }

    fn compaction(&mut self) {
        self.count += 1;
        let key = format!("{}-{}", self.group.name, self.count);
        let body = if self.random.one_in(2) { json!({ "focus": key }) } else { json!({}) };
        let mut ask = Ask::post(self.path("/compactions"), body);
        ask.key = self.random.one_in(2).then_some(key);
        self.submit(ask);
    }

    fn submit(&mut self, ask: Ask) {
        let Some(exchange) = self.client.send(&ask) else {
            // Nothing was sent; the caller drops a turn without a key.
            return self.unanswered.extend(ask.key.is_some().then_some(ask));
        };
        match exchange.status {
            200..300 => {
                self.tasks.push_back(text(&exchange.answer, "id").to_owned());
                self.answered.extend(ask.key.is_some().then_some(ask));
                for list in [self.tasks.len(), self.answered.len()] {
                    if REMEMBERED < list {
                        self.tasks.pop_front();
                        self.answered.pop_front();
                    }
                }
            }
            0 | 503 => self.unanswered.extend(ask.key.is_some().then_some(ask)),
            429 => thread::sleep(FULL),
            _ => {}
        }
    }

    /// Repeats a key: the server must answer with the same task.
    fn repeat(&mut self) {
        if self.answered.is_empty() {
            return;
        }
        let which = self.random.between(0, self.answered.len() as u64 - 1);
        if let Some(ask) = self.answered.get(usize::try_from(which).unwrap_or(0)).cloned() {
            self.ask(ask);
        }
    }

    fn on_a_task(&mut self, what: &str) {
        if let Some(task) = self.a_task() {
            self.ask(Ask::post(format!("/v1/tasks/{task}{what}"), json!({})));
        }
    }

    fn look(&mut self) {
        if let Some(task) = self.a_task() {
            self.ask(Ask::get(format!("/v1/tasks/{task}")));
        }
    }

    fn a_task(&mut self) -> Option<String> {
        let last = (self.tasks.len() as u64).checked_sub(1)?;
        self.tasks.get(usize::try_from(self.random.between(0, last)).ok()?).cloned()
    }
}

/// Answers some permissions, and kills agents and their shims in the lives whose plan says so.
pub fn meddle(stage: &Stage) {
    let client = stage.client();
    let mut random = Random::new(stage.plan.seed, "meddler");
    let mut killed = Instant::now();
    while !stage.is_calm() {
        thread::sleep(Duration::from_millis(40));
        if stage.address().is_none() {
            continue;
        }
        if random.one_in(3) {
            answer_permissions(&client, &mut random);
        }
        let life = stage.plan.lives.get(stage.life().saturating_sub(1));
        let every = life.and_then(|life| life.kills_agents);
        if every.is_some_and(|every| every < killed.elapsed()) {
            killed = Instant::now();
            kill_an_agent(stage, &client, &mut random);
        }
    }
}

/// Answers pending permissions: with an option, or with a cancel.
pub fn answer_permissions(client: &Client<'_>, random: &mut Random) {
    let page = client.json("/v1/permissions?state=pending").unwrap_or_default();
    for permission in page["items"].as_array().into_iter().flatten() {
        let path = format!("/v1/permissions/{}", text(permission, "id"));
        let options = permission["options"].as_array().filter(|options| !options.is_empty());
        let body = match options.filter(|_| !random.one_in(4)) {
            Some(options) => json!({ "option_id": random.pick(options)["optionId"] }),
            None => json!({ "cancel": true }),
        };
        client.send(&Ask::post(path, body));
    }
}

/// Kills the agent of a group other than the witness, or its shim.
fn kill_an_agent(stage: &Stage, client: &Client<'_>, random: &mut Random) {
    let group = random.pick(&stage.plan.groups);
    if group.witness {
        return;
    }
    let runs = client.json(&format!("/v1/groups/{}/runs?limit=1", group.name)).unwrap_or_default();
    let run = &runs["items"][0];
    let pid = run["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
    let (Some(agent), true) = (pid, run["ended_at"].is_null()) else { return };
    // The pid may belong to another process by now: only a process with this run's mark is killed.
    let marked = marked(&stage.home.data());
    if !marked.iter().any(|one| one.pid == agent && one.run == text(run, "id")) {
        return;
    }
    let shim = process::parent_of_live(agent).filter(|_| random.one_in(3));
    process::signal(shim.unwrap_or(agent), Signal::KILL);
}
