//! The optional features of the server under test: detected at the start, printed, and used if
//! present.

use std::{fmt, process::Command};

use greenroom_test_support::programs::built;
use serde_json::json;

use crate::{
    Result,
    home::Home,
    plan::{Form, Plan},
    server::Server,
    stage::{Ask, Stage},
};

/// Features that not every version serves.
#[derive(Clone, Copy, Debug, Default)]
pub struct Capabilities {
    /// The inbox, `/v1/permissions`.
    pub permissions: bool,
    /// `POST /v1/tasks/{task}/retry`.
    pub task_retry: bool,
    /// `expires_in_ms` of a turn.
    pub expiry: bool,
    /// Retries with backoff: the key `retry`.
    pub backoff: bool,
    /// `held` groups: the key `on_interrupt`.
    pub held: bool,
}

impl Capabilities {
    /// Detects the features of a server on an empty database.
    pub fn probe() -> Result<Self> {
        let mut plan = Plan::new(0, Form::Quick);
        plan.limits.on_interrupt = "auto";
        let home = Home::new(&plan)?;
        let stage = Stage::new(plan, home, Self::default());
        let checked = Command::new(built("greenroom")?)
            .args(["check-config", "--config"])
            .arg(stage.home.config())
            .output()?;
        let warnings =
            String::from_utf8_lossy(&[checked.stdout, checked.stderr].concat()).into_owned();
        if !checked.status.success() {
            return Err(format!("the rig's configuration is refused: {warnings}").into());
        }
        let acts_on = |key: &str| !warnings.contains(&format!(" {key} in ["));
        let mut server = Server::start(&stage.home, 0, None)?;
        stage.set_address(server.wait_ready()?);
        let client = stage.client();
        let ask = |ask: Ask| client.send(&ask).ok_or("the server does not listen");
        let retry = "/v1/tasks/tsk_01980000-0000-7000-8000-000000000000/retry";
        let expiring = json!({ "prompt": "[[reply:x]]", "expires_in_ms": 60_000 });
        let found = Self {
            permissions: ask(Ask::get("/v1/permissions"))?.status == 200,
            task_retry: ask(Ask::post(retry, json!({})))?.answer["type"]
                == "/problems/task-not-found",
            expiry: ask(Ask::post("/v1/groups/probe/turns", expiring))?.status == 202,
            backoff: acts_on("retry_base"),
            held: acts_on("on_interrupt"),
        };
        server.kill()?;
        stage.home.remove()?;
        Ok(found)
    }

    fn named(self) -> [(&'static str, bool); 5] {
        [
            ("permissions", self.permissions),
            ("task-retry", self.task_retry),
            ("expiry", self.expiry),
            ("backoff", self.backoff),
            ("held", self.held),
        ]
    }

    /// Returns the missing features of a list, or of `all`.
    pub fn missing(self, required: &str) -> Vec<&'static str> {
        let asked = |name: &str| required == "all" || required.split(',').any(|one| one == name);
        let missing = self.named().into_iter().filter(|(name, has)| asked(name) && !has);
        missing.map(|(name, _)| name).collect()
    }
}

impl fmt::Display for Capabilities {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, has) in self.named() {
            write!(out, " {name}={}", if has { "yes" } else { "no" })?;
        }
        Ok(())
    }
}
